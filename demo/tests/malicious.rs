//! A relay that cannot be trusted: nothing forged is accepted, nothing counts twice, nothing is
//! lost, delivery goes on elsewhere, and the operator sees which relay it was.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test reports by panicking"
)]

mod rig;

use std::time::Duration;

use demo::{
    malice::{MaliciousRelay, Misdeed, Tamper, Way},
    process::until,
    site::Site,
    weather::{Dice, seed},
};
use rig::{Cloud, Relay, Rig};
use rusqlite::Connection;
use wire::relay::RelayCode;

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_a_relay_tampers_with_ends_the_session_and_delivery_goes_on_elsewhere() {
    let mut scene = Scene::new().await;
    for tamper in TAMPERS {
        for way in [Way::ToService, Way::ToGateway] {
            // In the middle of the upload: frames enough come before and after.
            let found = scene.suffers(Misdeed::Tamper(tamper, way, 6)).await;
            // What the service meets it answers by hanging up, whichever relay that was.
            let expected: &[&str] = match (tamper, way) {
                (_, Way::ToService) | (Tamper::Cut, _) => &["truncated", "rejected"],
                (_, Way::ToGateway) => &["rejected"],
            };
            assert!(expected.contains(&&*found), "{tamper:?} {way:?}: {found}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_a_relay_tampers_with_fails_and_another_relay_is_taken() {
    let mut scene = Scene::new().await;
    for tamper in [Tamper::Alter, Tamper::Stretch, Tamper::Cut, Tamper::Repeat] {
        for (way, at) in [
            (Way::ToService, 0),
            (Way::ToService, 1),
            (Way::ToService, 2),
            (Way::ToGateway, 0),
            (Way::ToGateway, 1),
        ] {
            let found = scene.suffers(Misdeed::Tamper(tamper, way, at)).await;
            let after_ok = ["rejected", "truncated", "silent"];
            assert!(after_ok.contains(&&*found), "{tamper:?} {way:?}: {found}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_does_not_let_anybody_through_is_told_from_one_that_refuses() {
    let mut scene = Scene::new().await;
    assert_eq!(scene.suffers(Misdeed::HangUp).await, "no_relay");
    assert_eq!(scene.suffers(Misdeed::MuteBeforeOk).await, "no_relay");
    let refuse = Misdeed::Refuse(RelayCode::Busy);
    assert_eq!(scene.suffers(refuse).await, "refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_says_ok_and_then_garbage_or_nothing_is_named() {
    let mut scene = Scene::new().await;
    assert_eq!(scene.suffers(Misdeed::Garbage).await, "rejected");
    assert_eq!(scene.suffers(Misdeed::Flood).await, "rejected");
    assert_eq!(scene.suffers(Misdeed::Mute).await, "silent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_session_opens_nothing_at_either_end() {
    let mut scene = Scene::new().await;
    // One that is passed on, and recorded.
    scene.passes(Misdeed::None).await;

    assert_eq!(scene.suffers(Misdeed::ReplayToGateway).await, "rejected");

    let (session_before, rows_before) = (scene.newest_session(), scene.rows());
    let answered = scene.bad.replay().await.unwrap();
    // Message 2, which everybody gets who asks; and the service, which cannot read message 3, ends.
    assert!((1..4096).contains(&answered), "{answered} bytes");
    assert_eq!(scene.newest_session(), session_before);
    assert_eq!(scene.rows(), rows_before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_a_relay_connects_to_another_service_tells_it_nothing() {
    let mut scene = Scene::new().await;
    let other = Cloud::start(&[scene.honest.port]).await;
    let elsewhere = *other.keys.statement.fingerprint().bytes();

    assert_eq!(
        scene.suffers(Misdeed::Elsewhere(elsewhere)).await,
        "truncated"
    );

    assert_eq!(count(&other, "SELECT count(*) FROM readings"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_two_relays_do_in_whatever_order_everything_arrives_once() {
    let seed = seed();
    eprintln!("SEED={seed}");
    let mut dice = Dice::new(seed);
    let honest = Relay::start().await;
    let mut rig = Rig::start(&[honest.port]).await;
    let mut relays = Vec::new();
    for part in 0..2 {
        let plan: Vec<_> = (0..5).map(|_| misdeed(&mut dice)).collect();
        eprintln!("relay {part}: {plan:?}");
        let relay = MaliciousRelay::start(honest.port, plan, seed + part).await;
        relays.push(relay.unwrap());
    }
    rig.take(600, 4096).await;
    let ports: Vec<_> = relays.iter().map(|relay| relay.port).collect();

    let running = rig.uplink(&ports).await;

    rig.delivered(LONG).await;
    running.stop().await;
    rig.assert_books().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_completes_once_the_only_relay_behaves() {
    let honest = Relay::start().await;
    let mut rig = Rig::start(&[honest.port]).await;
    let plan = [
        Misdeed::Garbage,
        Misdeed::Tamper(Tamper::Alter, Way::ToService, 6),
        Misdeed::Tamper(Tamper::Drop, Way::ToGateway, 5),
        Misdeed::HangUp,
    ];
    let relay = MaliciousRelay::start(honest.port, plan, 1).await.unwrap();
    rig.take(BATCHES, 4096).await;

    let running = rig.uplink(&[relay.port]).await;

    rig.delivered(LONG).await;
    assert_eq!(relay.connections(), 5);
    assert_eq!(running.at(relay.port).failures.values().sum::<u64>(), 4);
    assert_eq!(running.charged(relay.port, "no_relay"), 1);
    running.stop().await;
    rig.assert_books().await;
}

/// With the daemon, its socket and its screen.
#[tokio::test(flavor = "multi_thread")]
async fn the_operator_sees_which_relay_misbehaved() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::prepare(&folder.path().join("site")).await.unwrap();
    let good = site.wiretap.port;
    let bad = MaliciousRelay::start(good, [], 1).await.unwrap();
    let service = format!(
        "[[service]]\nname = \"cloud\"\naddresses = [\"relay://127.0.0.1:{}\", \
         \"relay://127.0.0.1:{good}\"]\n",
        bad.port
    );
    site.write_gateway_config(&(service + &site.modbus_sensors()))
        .unwrap();
    site.start_modbus().await.unwrap();
    site.start_relay().await.unwrap();
    site.start_service().await.unwrap();
    site.start_gateway().await.unwrap();
    site.enrol("greenhouse-7").await.unwrap();
    site.delivered(LONG).await.unwrap();
    site.gateway.take().unwrap().stop().await.unwrap();
    bad.plan([Misdeed::Garbage]);
    site.start_gateway().await.unwrap();

    until("the other relay", LONG, || async {
        let status = site.status().await?;
        let service = &status["services"][0];
        Ok(service["uplink"] == "connected" && service["addresses"][1]["in_use"] == true)
    })
    .await
    .unwrap();

    let status = site.status().await.unwrap();
    let [misbehaved, other] = [0, 1].map(|at| status["services"][0]["addresses"][at].clone());
    assert_eq!(
        misbehaved["address"],
        format!("relay://127.0.0.1:{}", bad.port)
    );
    assert_eq!(misbehaved["failures"]["rejected"], 1);
    assert_eq!(misbehaved["sessions"], 0);
    assert!(misbehaved["last_failure"].is_string());
    assert_eq!(other["failures"]["rejected"], 0);
    assert_eq!(other["sessions"], 1);
    assert!(other["handshake_seconds"].as_f64().unwrap() > 0.0);
    let screen = site.gatewayctl(&["status"], "").await.unwrap();
    let screen = String::from_utf8(screen.stdout).unwrap();
    let line = screen
        .lines()
        .find(|line| line.starts_with(&format!("relay://127.0.0.1:{} ", bad.port)));
    assert!(
        line.is_some_and(|line| line.contains("1 rejected")),
        "{screen}"
    );
    assert!(
        !screen.contains(&format!("relay://127.0.0.1:{good} ")),
        "{screen}"
    );
}

/// Anything that ends soon by itself.
fn misdeed(dice: &mut Dice) -> Misdeed {
    let way = if dice.below(2) == 0 {
        Way::ToService
    } else {
        Way::ToGateway
    };
    match dice.below(8) {
        0 => Misdeed::HangUp,
        1 => Misdeed::Refuse(RelayCode::Limit),
        2 => Misdeed::Garbage,
        3 => Misdeed::Flood,
        _ => {
            let tamper = TAMPERS[usize::try_from(dice.below(6)).unwrap()];
            let at = 3 + u32::try_from(dice.below(20)).unwrap();
            Misdeed::Tamper(tamper, way, at)
        }
    }
}

/// A service that is registered at an honest relay; before it stands a malicious one, which the
/// gateway would rather use.
struct Scene {
    honest: Relay,
    bad: MaliciousRelay,
    rig: Rig,
}

impl Scene {
    async fn new() -> Self {
        let honest = Relay::start().await;
        let rig = Rig::start(&[honest.port]).await;
        let bad = MaliciousRelay::start(honest.port, [], 1).await.unwrap();
        Self { honest, bad, rig }
    }

    /// Lets a gateway meet the misdeed, once; everything is delivered through the honest relay all
    /// the same. Returns with what the malicious one is charged.
    async fn suffers(&mut self, misdeed: Misdeed) -> String {
        let met = self.bad.connections();
        self.bad.plan([misdeed]);
        self.rig.take(BATCHES, 4096).await;
        let ports = [self.bad.port, self.honest.port];
        let running = self.rig.uplink(&ports).await;

        self.rig.delivered(LONG).await;

        assert_eq!(running.port(), Some(self.honest.port), "{misdeed:?}");
        assert_eq!(self.bad.connections(), met + 1, "{misdeed:?}");
        assert!(running.at(self.honest.port).failures.is_empty());
        let charged = running.at(self.bad.port);
        assert!(charged.last_failure.is_some());
        let words: Vec<_> = charged.failures.into_keys().collect();
        running.stop().await;
        self.rig.assert_books().await;
        assert_eq!(words.len(), 1, "{misdeed:?}: {words:?}");
        words[0].to_owned()
    }

    /// Lets a gateway meet what does it no harm: it stays.
    async fn passes(&mut self, misdeed: Misdeed) {
        self.bad.plan([misdeed]);
        self.rig.take(BATCHES, 4096).await;
        let running = self.rig.uplink(&[self.bad.port, self.honest.port]).await;
        self.rig.delivered(LONG).await;
        assert_eq!(running.port(), Some(self.bad.port));
        assert!(running.at(self.bad.port).failures.is_empty());
        running.stop().await;
        self.rig.assert_books().await;
    }

    fn rows(&self) -> u64 {
        count(&self.rig.cloud, "SELECT count(*) FROM readings")
    }

    /// When the service last admitted a gateway.
    fn newest_session(&self) -> i64 {
        self.rig.cloud.newest_session()
    }
}

fn count(cloud: &Cloud, query: &str) -> u64 {
    let database = Connection::open(cloud.readings()).unwrap();
    database.query_row(query, [], |row| row.get(0)).unwrap()
}

const TAMPERS: [Tamper; 6] = [
    Tamper::Drop,
    Tamper::Repeat,
    Tamper::Swap,
    Tamper::Alter,
    Tamper::Stretch,
    Tamper::Cut,
];

/// 800 KiB: less than the window of an upload, so that all of it is under way.
const BATCHES: u64 = 200;

/// For a machine that is busy with other tests.
const LONG: Duration = Duration::from_secs(60);
