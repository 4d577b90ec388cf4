//! Who may connect, and how.

use super::server::{KEEPER_PASSWORD, secured};
use super::*;

#[tokio::test]
async fn an_unknown_database_or_user_is_permanent_and_named() {
    let table = unique("readings");
    for (url, part) in [
        (database_url().replace("/iot", "/nowhere"), "database \"nowhere\" does not exist"),
        (database_url().replace("postgres@", "nobody@"), "role \"nobody\" does not exist"),
    ] {
        let mut test = sink_at(&url, &database_url(), &table, "", &telemetry_schema()).await;
        let text = test.refusal().await;
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_permanent_and_no_password_is_ever_shown() {
    let server = secured();
    let url = format!("postgres://keeper@{}", server.place());
    let open = async |password: &str| {
        let settings = format!("create = true\npassword = \"{password}\"");
        sink_at(&url, &server.superuser_url(), &unique("readings"), &settings, &telemetry_schema()).await
    };
    open(KEEPER_PASSWORD).await.open().await.unwrap();
    let error = open("wrong horse").await.open().await.unwrap_err();
    assert_eq!((error.fault(), error.outside_code()), (Fault::Permanent, Some("28P01")), "{}", error.chain());
    assert!(!format!("{error:?} {}", error.chain()).contains("horse"), "{error:?}");
}

#[tokio::test]
async fn a_server_whose_authority_is_trusted_is_used_over_tls() {
    let server = secured();
    let ca = server.file("ca.pem").display().to_string();
    let url = format!("postgres://postgres@{}?sslmode=verify-full&sslrootcert={ca}", server.place());
    let mut test =
        sink_at(&url, &server.superuser_url(), &unique("readings"), "create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    test.write(vec![many(20_000, 0)]).await.unwrap();
    assert_eq!(test.count().await, 20_000);
    let sql = "SELECT bool_and(s.ssl) FROM pg_stat_ssl s JOIN pg_stat_activity USING (pid) \
               WHERE application_name = 'pipeline detached' AND query LIKE '%' || $1 || '%' OR query = 'COMMIT'";
    assert_eq!(test.client.query_one(sql, &[&test.table]).await.unwrap().get::<_, Option<bool>>(0), Some(true));
}

#[tokio::test]
async fn a_server_is_refused_for_its_authority_or_its_name_also_with_require_and_prefer() {
    let server = secured();
    let (ca, other) = (server.file("ca.pem").display().to_string(), server.file("other-ca.pem").display().to_string());
    let with_name = server.place().replace("127.0.0.1", "127.0.0.2");
    let place = server.place();
    let expected = [
        (format!("{place}?sslmode=verify-full&sslrootcert={other}"), "UnknownIssuer", "sslrootcert=/path/to/ca.pem"),
        (format!("{place}?sslmode=require&sslrootcert={other}"), "UnknownIssuer", "sslrootcert=/path/to/ca.pem"),
        (format!("{place}?sslmode=prefer&sslrootcert={other}"), "UnknownIssuer", "sslrootcert=/path/to/ca.pem"),
        (
            format!("{with_name}?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={ca}"),
            "not valid for name",
            "Connect by a name",
        ),
    ];
    for (place, cause, hint) in expected {
        let url = format!("postgres://postgres@{place}");
        let mut test = sink_at(&url, &server.superuser_url(), "readings", "", &telemetry_schema()).await;
        let text = test.refusal().await;
        assert!(text.contains("the server's certificate was refused") && text.contains(cause), "{text}");
        assert!(text.contains(hint), "{text}");
    }
}

#[tokio::test]
async fn a_client_certificate_logs_in() {
    let server = secured();
    let path = |name| server.file(name).display().to_string();
    let tls = format!("sslmode=verify-full&sslrootcert={}", path("ca.pem"));
    let url = format!(
        "postgres://holder@{}?{tls}&sslcert={}&sslkey={}",
        server.place(),
        path("holder.pem"),
        path("holder.key")
    );
    let mut test =
        sink_at(&url, &server.superuser_url(), &unique("readings"), "create = true", &telemetry_schema()).await;
    test.open().await.unwrap();
    let url = format!("postgres://holder@{}?{tls}", server.place());
    let mut without = sink_at(&url, &server.superuser_url(), "readings", "", &telemetry_schema()).await;
    assert!(without.refusal().await.contains("valid client certificate"));
}

#[tokio::test]
async fn tls_that_the_server_does_not_have_is_asked_for_in_vain() {
    let url = format!("{}?sslmode=verify-full", database_url());
    let mut test = sink_at(&url, &database_url(), "readings", "", &telemetry_schema()).await;
    let text = test.refusal().await;
    assert!(text.contains("server does not support TLS"), "{text}");
}

#[tokio::test]
async fn a_database_without_the_extension_gets_an_ordinary_table() {
    let admin = connect(&database_url()).await;
    let database = unique("plain");
    admin.batch_execute(&format!("CREATE DATABASE {database} TEMPLATE template0")).await.unwrap();
    let url = database_url().replace("/iot", &format!("/{database}"));
    let mut test = sink_at(&url, &url, "telemetry", "create = true", &telemetry_schema()).await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt().with_writer(std::sync::Mutex::new(log.reopen().unwrap())).finish();
    let logging = tracing::subscriber::set_default(subscriber);
    test.open().await.unwrap();
    drop(logging);
    let log = std::fs::read_to_string(log.path()).unwrap();
    assert!(log.contains("WARN") && log.contains("the database has no TimescaleDB extension"), "{log}");
    for _ in 0..2 {
        test.write(vec![many(1000, 0)]).await.unwrap();
    }
    assert_eq!((test.count().await, test.duplicates()), (1000, 1000));
    test.sink.sink.close().await.unwrap();
    admin.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await.unwrap();
}
