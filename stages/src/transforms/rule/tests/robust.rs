//! Whatever stands in a rule or in a message, the answer is a refusal or a row, and never a panic.

use arrow::array::AsArray;
use pipeline_engine::stage::{Batch, Port};
use proptest::prelude::*;

use super::{build, message_schema, messages};
use crate::transforms::testing::apply;

/// Rules that use most of the language.
const RULES: [&str; 6] = [
    "SET @a = b.c, @d = @a * 2 SELECT *, upper(x) AS y.z, -1.5e3 AS n FROM 'a/+/#' WHERE NOT @d >= 2 AND x IN ['p', \"q\"]",
    "SELECT VALUE {'k': [1, null, true], 'l': (SELECT v, w AS u FROM e[0].f WHERE v <> 'é')} FROM 'iot/telemetry'",
    "SELECT CASE a WHEN 1 THEN 'one' WHEN '2' THEN 2 ELSE cast(a AS Decimal) END AS c, topic(2) AS t WHERE a = b OR c",
    "SELECT parse_time('yyyy-MM-dd''T''HH:mm:ss.SSSZZ', timestamp(), 'Europe/Berlin') AS t, encode(*, 'base64') AS p",
    "SELECT regexp_replace(a, '(b+)', '$1-$1') AS r, substring(a, 1, 3) AS s, get_or_default(a.b, 'none') AS d",
    "SELECT time_to_epoch(a, 'dd MMMM yyyy z') AS e, concat(a, '/', b) AS c, nanvl(a, b) AS n, rand() AS r",
];

/// Functions of one to three arguments, with all of them from the message.
const CALLS: [&str; 34] = [
    "abs(a)",
    "chr(a)",
    "trunc(a, b)",
    "round(a)",
    "bitnot(a)",
    "bitand(a, b)",
    "power(a, b)",
    "mod(a, b)",
    "sign(a)",
    "lpad(a, b)",
    "rpad(a, b)",
    "substring(a, b)",
    "substring(a, b, c)",
    "indexof(a, b)",
    "replace(a, b, c)",
    "regexp_matches(a, b)",
    "regexp_replace(a, b, c)",
    "regexp_substr(a, b)",
    "startswith(a, b)",
    "get(a, b)",
    "a[b]",
    "concat(a, b, c)",
    "decode(a, 'base64')",
    "encode(a, 'base64')",
    "parse_time(a, b)",
    "parse_time('yyyy G w D a', a, b)",
    "time_to_epoch(a, b)",
    "time_to_epoch(a, 'yyyy-MM-dd HH:mm:ss VV')",
    "topic(a)",
    "transform('enrichArray', a, b)",
    "cast(a AS Int)",
    "a / b",
    "a % b",
    "a IN b",
];

fn any_value() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        "\\PC{0,12}",
        prop::sample::select(vec![
            "yyyy-MM-dd HH:mm:ss z",
            "GGG yy'x",
            "SSSSSSSSSS",
            "UTC+99",
            "+",
            "-25:00",
            "Z",
            "UTC",
            "Asia/Kolkata",
            "$1$",
            "\\",
            "(",
            "(a|b)*",
            "",
            "-9223372036854775808",
            "1e308",
            "2026-02-29 24:60:60 UTC+18:00",
            "9999999999-01-01",
        ])
        .prop_map(str::to_owned),
    ]
    .prop_map(|text| serde_json::to_string(&text).unwrap());
    let leaf = prop_oneof![
        text,
        any::<i64>().prop_map(|whole| whole.to_string()),
        any::<f64>()
            .prop_filter("JSON has no others", |number| number.is_finite())
            .prop_map(|number| format!("{number:?}")),
        prop::sample::select(vec!["null", "true", "0", "-1", "18446744073709551615", "1e400"]).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|all| format!("[{}]", all.join(","))),
            prop::collection::vec(inner, 0..3).prop_map(|all| {
                let members = all.iter().zip(["a", "b", "c"]).map(|(value, key)| format!("\"{key}\":{value}"));
                format!("{{{}}}", members.collect::<Vec<_>>().join(","))
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn a_rule_of_any_text_is_read_or_refused(text in "\\PC{0,60}") {
        for rule in [text.clone(), format!("SELECT {text} FROM 'a'"), format!("SELECT * WHERE {text}")] {
            if let Err(error) = build(&rule, "", &message_schema()) {
                let at = error.within.clone().expect("a place");
                prop_assert!(rule.get(at).is_some(), "{rule}: {error}");
            }
        }
    }

    #[test]
    fn a_rule_with_words_lost_or_mixed_up_is_read_or_refused_within_its_text(
        rule in prop::sample::select(RULES.to_vec()), from in 0..40usize, length in 0..6usize, to in 0..40usize,
    ) {
        let mut words: Vec<&str> = rule.split_inclusive([' ', '(', ')', ',', '.', '\'']).collect();
        let from = from % words.len();
        let taken: Vec<&str> = words.drain(from..(from + length).min(words.len())).collect();
        if to % 2 == 0 {
            let place = to % (words.len() + 1);
            words.splice(place..place, taken);
        }
        let text = words.concat();
        if let Err(error) = build(&text, "", &message_schema()) {
            let at = error.within.clone().expect("a place");
            prop_assert!(text.get(at).is_some(), "{text}: {error}");
        }
    }

    #[test]
    fn any_message_gives_json_or_nothing(
        call in prop::sample::select(CALLS.to_vec()), a in any_value(), b in any_value(), c in any_value(),
    ) {
        let mut transform = build(&format!("SELECT {call} AS x FROM '#'"), "", &message_schema()).unwrap().transform;
        let message = format!("{{\"a\":{a},\"b\":{b},\"c\":{c}}}");
        let outcome = apply(transform.as_mut(), Batch::detached(messages(&[(Some("x/y"), message.as_bytes())])));
        let is_json = serde_json::from_str::<serde_json::Value>(&message).is_ok();
        prop_assert_eq!(outcome.count(Port::MAIN), usize::from(is_json), "{}", message);
        if let Some(rows) = outcome.port(Port::MAIN) {
            let payload = rows.column_by_name("payload").unwrap().as_binary::<i32>().value(0);
            prop_assert!(serde_json::from_slice::<serde_json::Value>(payload).is_ok(), "{:?}", payload);
        }
    }
}
