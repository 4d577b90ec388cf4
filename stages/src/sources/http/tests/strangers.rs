//! Clients that may not post, or not so much: what they are told before they send it, and what they can't take from others.

use super::*;

/// Sends a head and nothing else; gives what comes back first.
async fn first_answer(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = [0; 512];
    let length = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..length]).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_client_that_asks_first_is_spared_the_sending_of_what_is_refused() {
    let house = House::new();
    let (outlet, run) = house.run("tokens = \"secret\"\nbody_max = \"1MiB\"").await;
    let post = |token: &str, length: usize| {
        format!(
            "POST /t HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\nauthorization: Bearer {token}\r\ncontent-length: {length}"
        )
    };
    for (token, length, status) in [
        ("wrong", 10, "401 Unauthorized"),
        ("secret", 2 << 20, "413 Payload Too Large"),
        ("secret", 10, "100 Continue"),
    ] {
        assert_eq!(first_answer(house.address, &post(token, length)).await, format!("HTTP/1.1 {status}"));
    }
    assert_eq!(stop(outlet, run).await, Vec::<String>::new());
}

#[tokio::test]
async fn strangers_who_say_nothing_take_no_place_from_those_who_may_post() {
    let house = House::new();
    let (mut outlet, run) = house.run("tokens = \"secret\"\nschema = \"t\"").await;
    // More than there is room for, each in the midst of its head.
    let mut strangers = Vec::new();
    for _ in 0..300 {
        let mut stranger = TcpStream::connect(house.address).await.unwrap();
        stranger.write_all(b"POST /iot/d1 HTTP/1.1\r\nhost: te").await.unwrap();
        strangers.push(stranger);
    }
    let answer = house.post("/iot/d1", &[("authorization", "Bearer secret")], "{\"n\": 1}").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(take_rows(&mut outlet, 1).await, ["d1=1"]);
    // The first of them had to make room.
    let mut rest = Vec::new();
    strangers[0].read_to_end(&mut rest).await.ok();
    assert!(rest.is_empty(), "{rest:?}");
    drop(strangers);
    assert_eq!(stop(outlet, run).await, Vec::<String>::new());
}
