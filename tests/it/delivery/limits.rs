//! A broker as it comes out of the box keeps 1,000 messages for a client, and drops the rest in silence.
//! A pipeline that waits for its sinks before it acknowledges loses 1,980 of 3,000 that way.

use super::chance::Chance;
use super::daemons::{BrokerSettings, Service};
use super::site::Site;
use super::table::Table;
use crate::process::wait_until;

const MESSAGES: u64 = 3_000;

#[test]
fn a_default_broker_drops_nothing_while_the_database_is_away() {
    let chance = Chance::new();
    let mut table = Table::default();
    for protocol in ["5", "3.1.1"] {
        let mut site = Site::new("limits", BrokerSettings::Defaults);
        site.set("MQTT_PROTOCOL", protocol);
        let pipeline = site.start_and_subscribe();
        site.daemons.kill(Service::Database);
        let fleet = site.fleet(1_000);
        wait_until("the broker to take them", || (site.record.acknowledged() >= MESSAGES).then_some(()));
        site.runtime.block_on(fleet.finish());
        site.daemons.start(Service::Database);
        site.wait_for_all();
        let (status, log) = pipeline.stop();
        assert!(status.success(), "{log}");
        let verdict = site.verdict();
        table.row(&format!("MQTT {protocol}"), verdict.to_string().trim_end());
        assert!(verdict.is_clean(), "MQTT {protocol}: {verdict}");
    }
    table.print(&format!("default Mosquitto, database away, {MESSAGES} messages, seed {}", chance.seed));
}
