//! A broker as it comes out of the box keeps 1,000 messages for a client, and drops the rest in silence.
//! A pipeline that waits for its sinks before it acknowledges loses two of three that way.

use super::daemons::{BrokerSettings, Service};
use super::site::Site;
use super::table::Table;
use crate::process::wait_until;

const MESSAGES: u64 = 3_000;
/// With 20 unacknowledged at most, each round trip with its sync to the disk brings 20: a machine that other builds keep
/// busy does not make fifty of them a second, and what waits in the broker beyond 1,000 is gone.
const PER_SECOND: u32 = 500;

/// With MQTT 3.1.1 the broker decides how many may be unacknowledged: 20. With MQTT 5 the pipeline does.
#[test]
fn a_default_broker_drops_nothing_while_the_database_is_away() {
    let mut site = Site::new("limits", BrokerSettings::Defaults);
    let mut table = Table::default();
    for protocol in ["3.1.1", "5"] {
        site.set("MQTT_PROTOCOL", protocol);
        let pipeline = site.start_and_subscribe();
        site.daemons.kill(Service::Database);
        let acknowledged = site.record.acknowledged();
        let fleet = site.fleet(PER_SECOND);
        wait_until("the broker to take them", || (site.record.acknowledged() >= acknowledged + MESSAGES).then_some(()));
        site.runtime.block_on(fleet.finish());
        site.daemons.start(Service::Database);
        site.wait_for_all();
        let (status, log) = pipeline.stop();
        assert!(status.success(), "{log}");
        table.row(&format!("MQTT {protocol}"), format!("{} acknowledged", site.record.acknowledged() - acknowledged));
    }
    site.conclude("default Mosquitto, database away", table);
}
