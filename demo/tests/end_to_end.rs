//! Everything as processes: what is promised holds, and what goes wrong costs nothing else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

mod fixture;

use std::{fs, os::unix::net::UnixDatagram, path::PathBuf, process::Output, time::Duration};

use demo::{
    accounts::Accounts,
    process::{ours, until},
    secrecy::{Needles, files_below},
    site::number,
};
use fixture::Fixture;
use rusqlite::Connection;
use serde_json::Value;
use tokio::net::TcpListener;

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_arrives_once_although_service_and_gateway_fail() {
    let mut site = Fixture::running().await;
    site.enrol("greenhouse-7").await.unwrap();
    site.delivered(LONG).await.unwrap();

    site.service.take().unwrap().kill().await.unwrap();
    site.stored_more(20).await;
    site.gateway.take().unwrap().kill().await.unwrap();
    site.start_gateway().await.unwrap();
    site.start_service().await.unwrap();
    site.stored_more(20).await;
    for sensor in site.modbus.drain(..).rev() {
        sensor.stop().await.unwrap();
    }
    site.delivered(LONG).await.unwrap();

    let status = site.status().await.unwrap();
    let books = Accounts::read(&status, &site.readings()).unwrap();
    assert!(books.hold(), "{books:?}");
    assert_eq!((books.runs, books.unclean_stops), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_relay_nor_disk_has_a_name_or_value() {
    let mut site = Fixture::running().await;
    site.enrol("greenhouse-7").await.unwrap();
    site.delivered(LONG).await.unwrap();
    site.service.take().unwrap().stop().await.unwrap();
    site.stored_more(20).await;
    site.keep_spool("spool-in-outage").unwrap();
    site.start_service().await.unwrap();
    site.delivered(LONG).await.unwrap();

    let readings = site.readings();
    let needles = Needles::of_delivered(&readings).unwrap();
    let mut carried = files_below(&site.path("spool-in-outage")).unwrap();
    carried.push(site.wiretap.recording.clone());
    let found = needles.search(&carried).unwrap();

    assert!(0 < found.bytes);
    assert_eq!(found.needles, [""; 0]);
    // The same search finds them all where they are not sealed.
    let control = needles.control(&readings).unwrap();
    assert_eq!(control.needles.len(), needles.len());
    assert!(control.needles.contains(&"climate".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_says_where_every_sensor_ended() {
    let mut site = Fixture::running().await;
    site.enrol("greenhouse-7").await.unwrap();
    site.delivered(LONG).await.unwrap();
    site.gateway.take().unwrap().stop().await.unwrap();
    site.start_gateway().await.unwrap();
    let database = site.readings();
    // What the first run stored last is delivered by the second.
    until("the end of the first run", LONG, || async {
        let ends: u64 = Connection::open(&database)?.query_row(
            "SELECT count(*) FROM run WHERE last IS NOT NULL",
            [],
            |row| row.get(0),
        )?;
        Ok(ends == 2)
    })
    .await
    .unwrap();
    let wrong: u64 = Connection::open(&database)
        .unwrap()
        .query_row(
            "SELECT count(*) FROM run WHERE last IS NOT NULL AND last <> (SELECT max(sequence)
               FROM readings WHERE readings.run_id = run.run_id
                 AND readings.sensor_number = run.sensor_number)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(wrong, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_ticket_is_told_from_a_wrong_one() {
    let site = Fixture::running().await;
    refused(
        &site
            .gatewayctl(&["enroll", "-"], "gwt1-abcd")
            .await
            .unwrap(),
        75,
        "gatewayctl init",
    );
    site.gatewayctl(&["init"], "").await.unwrap();
    let ticket = site.invite("greenhouse-7", &[]).await.unwrap();

    let mut mistyped = ticket.clone().into_bytes();
    mistyped[20] = if mistyped[20] == b'a' { b'b' } else { b'a' };
    let mistyped = String::from_utf8(mistyped).unwrap();
    let output = site.gatewayctl(&["enroll", "-"], &mistyped).await.unwrap();
    refused(&output, 2, "copy the whole ticket");

    // The right one still works: nothing was spent.
    let output = site.gatewayctl(&["enroll", "-"], &ticket).await.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_ticket_says_when_it_expired() {
    let site = Fixture::running().await;
    site.gatewayctl(&["init"], "").await.unwrap();
    let ticket = site.invite("greenhouse-7", &[]).await.unwrap();
    site.registry()
        .execute("UPDATE ticket SET expires_ms = 47523000", [])
        .unwrap();

    let output = site.gatewayctl(&["enroll", "-"], &ticket).await.unwrap();

    refused(&output, 76, "gateway-cloud invite");
    assert!(
        stderr(&output).contains("the ticket expired at 13:12:03"),
        "{}",
        stderr(&output)
    );
    still_recording(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_works_for_one_tpm() {
    let mut site = Fixture::running().await;
    site.gatewayctl(&["init"], "").await.unwrap();
    let ticket = site.invite("greenhouse-7", &[]).await.unwrap();
    let first = site.gatewayctl(&["enroll", "-"], &ticket).await.unwrap();
    assert!(first.status.success(), "{}", stderr(&first));
    site.delivered(LONG).await.unwrap();

    site.another_board().await;
    site.gatewayctl(&["init"], "").await.unwrap();
    let second = site.gatewayctl(&["enroll", "-"], &ticket).await.unwrap();

    refused(&second, 76, "gateway-cloud invite");
    assert!(
        stderr(&second).contains("the ticket was used at"),
        "{}",
        stderr(&second)
    );
    let gateways: u64 = site
        .registry()
        .query_row("SELECT count(*) FROM gateway", [], |row| row.get(0))
        .unwrap();
    assert_eq!(gateways, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_of_another_service_than_the_pinned_one_is_refused_unspent() {
    let mut site = Fixture::prepared().await;
    let pinned = "sv-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let service = format!("[[service]]\nname = \"farm\"\nkey = \"{pinned}\"\n");
    site.write_gateway_config(&(service + &site.modbus_sensors()))
        .unwrap();
    site.start_all().await;
    site.gatewayctl(&["init"], "").await.unwrap();
    let ticket = site.invite("greenhouse-7", &[]).await.unwrap();

    let output = site.gatewayctl(&["enroll", "-"], &ticket).await.unwrap();

    refused(&output, 2, "ask the service's operator; do not go on");
    assert!(stderr(&output).contains(pinned), "{}", stderr(&output));
    let unspent: String = site
        .registry()
        .query_row("SELECT state FROM ticket", [], |row| row.get(0))
        .unwrap();
    assert_eq!(unspent, "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_the_service_does_not_know_keeps_its_readings() {
    let mut site = Fixture::running().await;
    site.enrol("greenhouse-7").await.unwrap();
    site.delivered(LONG).await.unwrap();
    site.service.take().unwrap().stop().await.unwrap();
    site.registry().execute("DELETE FROM gateway", []).unwrap();
    site.start_service().await.unwrap();

    let service = site.uplink("refused").await;

    assert_eq!(service["problem"], "the service refused: unknown gateway");
    assert!(service["do"].is_string());
    site.stored_more(5).await;
    let held = number(&site.status().await.unwrap(), "/spool/held_readings");
    assert!(0 < held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_other_keys_than_the_pinned_ones_gets_nothing() {
    let mut site = Fixture::running().await;
    site.enrol("greenhouse-7").await.unwrap();
    site.delivered(LONG).await.unwrap();
    site.gateway.take().unwrap().stop().await.unwrap();
    site.service.take().unwrap().stop().await.unwrap();
    fs::remove_dir_all(site.path("cloud/keys")).unwrap();
    let rows_before = site.rows();
    site.start_service().await.unwrap();
    let service = format!(
        "[[service]]\nname = \"cloud\"\naddresses = [\"tcp://127.0.0.1:{}\"]\n",
        site.direct_port
    );
    site.write_gateway_config(&(service + &site.modbus_sensors()))
        .unwrap();
    site.start_gateway().await.unwrap();

    let service = site.uplink("waiting").await;

    assert_eq!(
        service["problem"],
        "the other side ended the connection without a word"
    );
    let advice = service["do"].as_str().unwrap();
    assert!(advice.contains("is the one pinned"), "{advice}");
    site.stored_more(5).await;
    assert_eq!(site.rows(), rows_before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_closes_or_floods_costs_nothing_but_time() {
    for flood in [false, true] {
        let mut site = Fixture::running().await;
        site.enrol("greenhouse-7").await.unwrap();
        site.delivered(LONG).await.unwrap();
        site.gateway.take().unwrap().stop().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(fixture::bad_relay(listener, flood));
        let service =
            format!("[[service]]\nname = \"cloud\"\naddresses = [\"relay://127.0.0.1:{port}\"]\n");
        site.write_gateway_config(&(service + &site.modbus_sensors()))
            .unwrap();
        site.start_gateway().await.unwrap();

        let service = site.uplink("waiting").await;

        let problem = service["problem"].as_str().unwrap();
        let expected = if flood {
            "what answers there is not a relay of this version"
        } else {
            "the relay ended the connection"
        };
        assert!(problem.starts_with(expected), "{problem}");
        assert!(service["do"].is_string());
        site.stored_more(5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_with_five_mistakes_names_all_five() {
    let site = Fixture::prepared().await;
    let path = site.path("gateway/gatewayd.toml");
    fs::write(
        &path,
        "[spool]\nmax_siz = \"1MiB\"\n[batch]\ninterval = 5\n[[service]]\nname = \"Farm\"\n\
         [[sensor]]\nname = \"a\"\nsource = \"nowhere\"\nformat = \"modbos\"\n",
    )
    .unwrap();
    let mut daemon = ours("gatewayd").unwrap().into_std();
    let mut ctl = ours("gatewayctl").unwrap().into_std();
    let outputs = [
        daemon.arg("--config").arg(&path).output().unwrap(),
        ctl.args(["config", "validate", "--config"])
            .arg(&path)
            .output()
            .unwrap(),
    ];
    for output in outputs {
        assert_eq!(output.status.code(), Some(78));
        let text = stderr(&output);
        for (line, words) in [
            (2, "max_siz"),
            (4, "5"),
            (6, "Farm"),
            (9, "nowhere"),
            (10, "modbos"),
        ] {
            let found = text.lines().any(|said| {
                said.contains(&format!("gatewayd.toml:{line}:")) && said.contains(words)
            });
            assert!(found, "line {line} with {words}:\n{text}");
        }
        assert!(text.contains("5 mistakes in 1 file"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_serial_port_is_the_problem_of_its_sensors_only() {
    let mut site = Fixture::prepared().await;
    let second_bus = "[[bus]]\nname = \"lost\"\nport = \"/dev/serial/by-id/not-there\"\n\
        [[sensor]]\nname = \"tank\"\nsource = \"lost\"\nformat = \"modbus\"\nslave_id = 1\n\
        channels.level = { address = 0, type = \"UINT16\", unit = \"m\" }\n";
    site.write_gateway_config(&(site.modbus_sensors() + second_bus))
        .unwrap();
    site.start_all().await;
    site.enrol("greenhouse-7").await.unwrap();
    site.delivered(LONG).await.unwrap();

    let status = site.status().await.unwrap();

    let sensors = status["sensors"].as_array().unwrap();
    let sensor = |name| {
        sensors
            .iter()
            .find(|sensor| sensor["name"] == name)
            .unwrap()
    };
    assert_eq!(sensor("tank")["state"], "absent");
    assert!(
        sensor("tank")["problem"]
            .as_str()
            .unwrap()
            .contains("not-there")
    );
    assert_eq!(sensor("climate")["state"], "ok");
    assert_eq!(sensor("irrigation")["state"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tpm_the_gateway_keeps_recording_and_says_what_to_do() {
    let mut site = Fixture::running().await;
    site.enrol("greenhouse-7").await.unwrap();
    site.delivered(LONG).await.unwrap();
    site.gateway.take().unwrap().stop().await.unwrap();
    site.tpm.kill().unwrap();
    site.start_gateway().await.unwrap();

    until("the missing TPM to be seen", LONG, || async {
        let status = site.status().await?;
        Ok(status["tpm"]["state"] == "absent" && status["tpm"]["do"].is_string())
    })
    .await
    .unwrap();
    site.stored_more(5).await;
    let output = site.gatewayctl(&["init"], "").await.unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", stderr(&output));
    assert!(stderr(&output).contains("do: "), "{}", stderr(&output));

    // It heals by itself when the TPM is back, and what was recorded meanwhile arrives.
    site.tpm.restart().unwrap();
    site.uplink("connected").await;
    for sensor in site.modbus.drain(..).rev() {
        sensor.stop().await.unwrap();
    }
    site.delivered(LONG).await.unwrap();
    let status = site.status().await.unwrap();
    let books = Accounts::read(&status, &site.readings()).unwrap();
    assert!(books.hold(), "{books:?}");
    assert_eq!((books.runs, books.unclean_stops), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_hears_ready_then_progress_then_stopping() {
    let mut site = Fixture::prepared().await;
    let socket = site.path("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(LONG)).unwrap();
    site.gateway_env = vec![("NOTIFY_SOCKET", socket.into_os_string())];
    site.start_gateway().await.unwrap();
    let hear = || {
        let mut told = [0; 64];
        let count = systemd.recv(&mut told).unwrap();
        String::from_utf8_lossy(&told[..count]).into_owned()
    };
    assert!(hear().contains("READY=1"));
    assert!(hear().contains("WATCHDOG=1"));
    site.gateway.take().unwrap().stop().await.unwrap();
    while !hear().contains("STOPPING=1") {}
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_taken_before_enrolment_arrive() {
    let site = Fixture::running().await;
    until("readings to be held", LONG, || async {
        let status = site.status().await?;
        Ok(status["sensors"][0]["state"] == "ok")
    })
    .await
    .unwrap();
    site.enrol("greenhouse-7").await.unwrap();
    site.delivered(LONG).await.unwrap();
    let first: u64 = Connection::open(site.readings())
        .unwrap()
        .query_row("SELECT min(sequence) FROM readings", [], |row| row.get(0))
        .unwrap();
    assert_eq!(first, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_answers_in_json_and_on_the_screen() {
    let site = Fixture::running().await;
    site.enrol("greenhouse-7").await.unwrap();
    site.delivered(LONG).await.unwrap();

    let screen = site.gatewayctl(&["status"], "").await.unwrap();
    let screen = String::from_utf8(screen.stdout).unwrap();
    for words in [
        "SERVICE",
        "cloud",
        "connected",
        "SENSOR",
        "climate",
        "ppm",
        "tpm    ok",
    ] {
        assert!(screen.contains(words), "{words}:\n{screen}");
    }
    let list = site
        .gateway_cloud()
        .unwrap()
        .args(["ls", "--json"])
        .output()
        .await
        .unwrap();
    let row: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(row["name"], "greenhouse-7");
    assert_eq!(row["state"], "enrolled");

    let again = site.gatewayctl(&["init"], "").await.unwrap();
    let identity = site.status().await.unwrap()["gateway"]
        .as_str()
        .unwrap()
        .to_owned();
    let short = String::from_utf8(again.stdout)
        .unwrap()
        .trim()
        .replace('-', "");
    assert!(
        identity.starts_with(&format!("gi-{short}")),
        "{identity} {short}"
    );
}

/// The error is one that a person can act on: exit code, what and why, what to do.
fn refused(output: &Output, code: i32, advice: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.starts_with("error: "), "{text}");
    assert!(text.contains("\ndo: "), "{text}");
    assert!(text.contains(advice), "{text}");
}

async fn still_recording(site: &Fixture) {
    let state = site.status().await.unwrap();
    assert_eq!(state["sensors"][0]["state"], "ok", "{state}");
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// For a machine that is busy with other tests.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_relay_that_wants_a_token_lets_in_who_has_it() {
    let mut site = Fixture::prepared().await;
    let ours = write_token(&site, "ours", 1);
    write_token(&site, "theirs", 2);
    let relays = format!("\"token\"\ntokens = [\"file:{}\"]", ours.display());
    site.write_cloud_config(&relays).unwrap();
    let gateway = |token: &str| {
        let sensors = site.modbus_sensors();
        let token = site.path(token);
        let service = format!(
            "[[service]]\nname = \"farm\"\nrelay_token = \"file:{}\"\n",
            token.display()
        );
        site.write_gateway_config(&(service + &sensors)).unwrap();
    };

    gateway("theirs");
    site.start_all().await;
    site.gatewayctl(&["init"], "").await.unwrap();
    let ticket = site.invite("greenhouse-7", &[]).await.unwrap();
    let refused = site.gatewayctl(&["enroll", "-"], &ticket).await.unwrap();
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(words.contains("does not admit"), "{words}");

    // It is read at each attempt.
    fs::copy(&ours, site.path("theirs")).unwrap();
    let enrolled = site.gatewayctl(&["enroll", "-"], &ticket).await.unwrap();
    assert!(enrolled.status.success(), "{enrolled:?}");
    site.uplink("connected").await;
    site.delivered(LONG).await.unwrap();

    // Whose token was taken away is told so, by name of what to mend.
    fs::remove_file(site.path("theirs")).unwrap();
    site.relay.take().unwrap().kill().await.unwrap();
    site.start_relay().await.unwrap();
    until("relay_token as the problem", LONG, || async {
        let status = site.status().await?;
        let problem = status["services"][0]["problem"].as_str();
        Ok(problem.is_some_and(|problem| problem.starts_with("relay_token: cannot read")))
    })
    .await
    .unwrap();
}

fn write_token(site: &Fixture, name: &str, seed: u8) -> PathBuf {
    let path = site.path(name);
    let token = data_encoding::BASE32.encode(&[seed; 40]);
    fs::write(&path, token + "\n").unwrap();
    path
}
