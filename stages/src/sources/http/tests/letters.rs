//! Refused messages posted again by `pipeline dlq replay`.

use pipeline_engine::dlq::{Letter, LetterForm, LetterId, NotSent};

use super::*;

#[tokio::test]
async fn a_dead_letter_is_posted_again_to_the_path_it_came_by() {
    let house = House::new();
    let (mut outlet, run) = house.run("schema = \"t\"\ntokens = [\"old\", \"new\"]").await;
    let text = format!("address = \"{}\"\nschema = \"t\"\ntokens = [\"old\", \"new\"]", house.address);
    let mut resender = build(&text).unwrap().source.resender().expect("a way back");
    let letter = |topic: &str, payload: &'static str| Letter {
        id: LetterId([0; 16]),
        received_at_us: 0,
        stage: "in".to_owned(),
        reason: "out_of_range".to_owned(),
        detail: None,
        topic: Some(topic.to_owned()),
        position: None,
        payload: payload.into(),
    };
    let message = |letter: &Letter, form| resender.message(letter, form, None).unwrap();
    let messages = [
        message(&letter("iot/d1", "{\"n\":\n 1}"), LetterForm::Message),
        message(&letter("iot/d2", "{\"device\":\"d2\",\"n\":2}"), LetterForm::Row),
        message(&letter("iot/d3", "no JSON"), LetterForm::Message),
        // The same once more, on purpose.
        message(&letter("iot/d1", "{\"n\":\n 1}"), LetterForm::Message),
    ];
    let verdicts = resender.send(&messages).await.unwrap();
    assert!(matches!(verdicts[..], [Ok(()), Ok(()), Err(NotSent::Refused(_)), Ok(())]), "{verdicts:?}");
    assert_eq!(take_rows(&mut outlet, 3).await, ["d1=1", "d2=2", "d1=1"]);
    assert_eq!(stop(outlet, run).await, Vec::<String>::new());
    let away = resender.send(&messages[..1]).await.unwrap();
    assert!(matches!(&away[..], [Err(NotSent::Later(why))] if why.contains("must be running")), "{away:?}");
}
