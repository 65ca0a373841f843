//! The relay joins those who may talk, and bounds everybody else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test reports by panicking"
)]

use std::io;
use std::time::Duration;

use channel::{
    Admission, Fingerprint, InitiatorConfig, OnlineKey, Purpose, RecordKey, ResponderConfig,
    SigningKey, SoftwareSigningKey, SoftwareStaticKey, Statement, StatementContent, StaticKey,
    Suite,
};
use cloud::relay::{Admit, Limits, RelayConfig, RelayMetrics, serve};
use futures::future::BoxFuture;
use getrandom::SysRng;
use link::relay::{Registration, RelayEvent, Token};
use link::{Address, KeepStatement, LinkError, PeerHello, Registry, StreamName};
use rand_core::UnwrapErr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use wire::relay::{Answer, ClientMessage, GREETING_BYTES, Greeting, RelayCode, register_message};
use zeroize::Zeroizing;

#[tokio::test]
async fn a_registered_service_is_reached_end_to_end() {
    let relay = Relay::start().await;
    // For the rest of the program: the drivers are spawned.
    let service: &'static Service = Box::leak(Box::new(Service::new()));
    let gateway_key: &'static _ = Box::leak(Box::new(SoftwareStaticKey::generate(&mut rng())));
    let mut registration = service.register(&relay, 1).await.unwrap();
    let config = InitiatorConfig {
        suite: Suite::AesGcm,
        pin: service.fingerprint(),
        held: None,
        static_key: gateway_key.public(),
        purpose: Purpose::Deliver,
        version: String::new(),
    };

    let (connected, accepted) = tokio::join!(
        link::connect(&relay.address, config, gateway_key, &Shelf),
        async {
            let id = incoming(&mut registration).await;
            let stream = link::relay::accept(&relay.address, id).await.unwrap();
            let config = ResponderConfig {
                statement: service.statement(1),
                static_key: service.key.public(),
            };
            link::accept(stream, config, &service.key, &Door).await
        }
    );

    let (driver, gateway) = connected.unwrap().split();
    tokio::spawn(driver.run());
    let (driver, service) = accepted.unwrap().0.split();
    let ended = tokio::spawn(driver.run());
    let mut upload = gateway.open(StreamName::Upload).await.unwrap();
    let batch = vec![0x17; 1024 * 1024];
    let (_, mut received) = service.accept().await.unwrap();
    let (sent, received) = tokio::join!(upload.send(&batch), received.recv());
    sent.unwrap();
    assert!(received.unwrap().unwrap() == batch);
    gateway.close(Admission::GoingAway);
    assert_eq!(ended.await.unwrap().unwrap(), Admission::GoingAway);
}

#[tokio::test]
async fn a_service_that_is_not_registered_is_unknown() {
    let relay = Relay::start().await;
    let service = Service::new();
    assert_refused(relay.hello(&service).await, RelayCode::NoSuchService);

    let registration = service.register(&relay, 1).await.unwrap();
    drop(registration);
    relay.until_unknown(&service).await;
}

#[tokio::test]
async fn bytes_pass_both_ways_and_an_end_passes_alone() {
    both_ways(&Relay::start().await).await;
}

async fn both_ways(relay: &Relay) {
    let (mut client, mut service) = relay.joined().await;
    let sent: Vec<u8> = (0..=u8::MAX).cycle().take(3_000_000).collect();
    let pass = async |from: &mut TcpStream, to: &mut TcpStream| {
        let mut received = vec![0; sent.len()];
        let (wrote, read) = tokio::join!(from.write_all(&sent), to.read_exact(&mut received));
        wrote.unwrap();
        read.unwrap();
        assert!(received == sent);
    };
    pass(&mut client, &mut service).await;
    pass(&mut service, &mut client).await;

    client.shutdown().await.unwrap();
    let end = timeout(PATIENCE, service.read(&mut [0])).await;
    assert_eq!(end.expect("the end does not pass").unwrap(), 0);
    service.write_all(b"after").await.unwrap();
    let mut after = [0; 5];
    client.read_exact(&mut after).await.unwrap();
    assert_eq!(&after, b"after");
}

#[tokio::test]
async fn bytes_that_come_one_by_one_arrive_as_they_were() {
    for pipes in [Limits::default().pipes, 0] {
        let relay = Relay::with(Limits {
            pipes,
            ..Limits::default()
        })
        .await;
        let (mut client, mut service) = relay.joined().await;
        client.set_nodelay(true).unwrap();
        let sent: Vec<u8> = (0..=u8::MAX).cycle().take(5000).collect();
        let mut received = vec![0; sent.len()];
        let writing = async {
            for byte in &sent {
                client.write_all(&[*byte]).await.unwrap();
            }
        };
        let ((), read) = tokio::join!(writing, service.read_exact(&mut received));
        read.unwrap();
        assert!(received == sent);
    }
}

#[tokio::test]
async fn a_hello_that_comes_byte_by_byte_is_understood() {
    let relay = Relay::start().await;
    let mut client = Raw::dial(&relay).await;
    client.stream.set_nodelay(true).unwrap();
    let hello = ClientMessage::Hello {
        service: [1; 32],
        token: None,
    };
    let hello = hello.encode();
    let length = u16::try_from(hello.len()).unwrap().to_be_bytes();
    for byte in length.iter().chain(&hello) {
        client.stream.write_all(&[*byte]).await.unwrap();
    }
    assert_eq!(client.answer().await, RelayCode::NoSuchService);
}

#[tokio::test]
async fn what_is_held_for_a_peer_that_does_not_read_is_bounded_and_not_lost() {
    for pipes in [Limits::default().pipes, 0] {
        let relay = Relay::with(Limits {
            pipes,
            ..Limits::default()
        })
        .await;
        let (client, mut service) = relay.joined().await;
        let sent = fill(&client).await;
        let mut received = vec![0; sent.len()];
        let read = timeout(PATIENCE, service.read_exact(&mut received)).await;
        read.expect("bytes are lost").unwrap();
        assert!(received == sent, "{} bytes", sent.len());
    }
}

#[tokio::test]
async fn when_there_are_no_pipes_bytes_pass_through_buffers() {
    let relay = Relay::with(Limits {
        pipes: 0,
        ..Limits::default()
    })
    .await;
    both_ways(&relay).await;
}

#[tokio::test]
async fn who_writes_to_a_peer_that_does_not_read_is_stopped() {
    let relay = Relay::start().await;
    let (mut client, _service) = relay.joined().await;
    let chunk = vec![0; 1024 * 1024];
    let flood = async {
        // Far above what the kernel keeps on both sides of the relay.
        for _ in 0..64 {
            client.write_all(&chunk).await.unwrap();
        }
    };
    let stopped = timeout(Duration::from_secs(1), flood).await;
    assert!(stopped.is_err(), "64 MiB went where nobody took them");
}

#[tokio::test]
async fn a_silent_splice_ends_and_a_busy_one_does_not() {
    let relay = Relay::with(Limits {
        idle_time: Duration::from_millis(300),
        ..Limits::default()
    })
    .await;
    let (mut client, mut service) = relay.joined().await;
    for _ in 0..6 {
        sleep(Duration::from_millis(100)).await;
        client.write_all(b".").await.unwrap();
        service.read_exact(&mut [0]).await.unwrap();
    }
    assert_eq!(ended(&mut client).await, 0);
    assert_eq!(ended(&mut service).await, 0);
}

#[tokio::test]
async fn a_client_that_is_slow_to_say_what_it_wants_is_refused() {
    let relay = Relay::with(Limits {
        hello_time: Duration::from_millis(100),
        ..Limits::default()
    })
    .await;
    for part in [&b""[..], b"\0", b"\0\x25", b"\0\x25\xa2\x01"] {
        let mut client = Raw::dial(&relay).await;
        client.stream.write_all(part).await.unwrap();
        assert_eq!(client.answer().await, RelayCode::Limit);
        assert_eq!(ended(&mut client.stream).await, 0);
    }
}

#[tokio::test]
async fn a_message_that_is_too_long_is_refused_before_it_is_read() {
    let relay = Relay::start().await;
    for length in [16 * 1024 + 1, u16::MAX] {
        let mut client = Raw::dial(&relay).await;
        client
            .stream
            .write_all(&length.to_be_bytes())
            .await
            .unwrap();
        assert_eq!(client.answer().await, RelayCode::Limit);
    }
}

#[tokio::test]
async fn a_hello_may_not_use_the_length_of_a_registration() {
    let relay = Relay::with(Limits {
        hello_bytes: 16,
        ..Limits::default()
    })
    .await;
    let mut client = Raw::dial(&relay).await;
    let hello = ClientMessage::Hello {
        service: [1; 32],
        token: None,
    };
    assert_eq!(client.ask(&hello).await, RelayCode::Limit);
}

#[tokio::test]
async fn what_is_no_message_is_another_version() {
    let relay = Relay::start().await;
    let mut client = Raw::dial(&relay).await;
    client.stream.write_all(b"\0\x04GET ").await.unwrap();
    assert_eq!(client.answer().await, RelayCode::Version);
}

#[tokio::test]
async fn an_id_that_nobody_was_given_is_refused() {
    let relay = Relay::start().await;
    let taken = link::relay::accept(&relay.address, [7; 16]).await;
    assert_refused(taken, RelayCode::BadProof);
}

#[tokio::test]
async fn an_id_is_good_once() {
    let relay = Relay::start().await;
    let service = Service::new();
    let mut registration = service.register(&relay, 1).await.unwrap();
    let (joined, id) = tokio::join!(relay.hello(&service), async {
        let id = incoming(&mut registration).await;
        (link::relay::accept(&relay.address, id).await.unwrap(), id)
    });
    let (_client, (_service, id)) = (joined.unwrap(), id);

    let again = link::relay::accept(&relay.address, id).await;
    assert_refused(again, RelayCode::BadProof);
}

#[tokio::test]
async fn a_service_that_accepts_too_late_is_too_late() {
    let relay = Relay::with(Limits {
        accept_time: Duration::from_millis(100),
        ..Limits::default()
    })
    .await;
    let service = Service::new();
    let mut registration = service.register(&relay, 1).await.unwrap();
    let (client, id) = tokio::join!(relay.hello(&service), incoming(&mut registration));
    assert_refused(client, RelayCode::ServiceSilent);

    let late = link::relay::accept(&relay.address, id).await;
    assert_refused(late, RelayCode::BadProof);
}

#[tokio::test]
async fn a_registration_for_another_relay_is_refused() {
    let relay = Relay::with_config(|mut config| {
        config.names = vec!["relay-b.example:4430".to_owned()];
        config
    })
    .await;
    let registered = Service::new().register(&relay, 1).await;
    assert_refused(registered, RelayCode::BadProof);
}

#[tokio::test]
async fn what_a_service_proves_to_one_relay_is_refused_by_another() {
    let relay = Relay::start().await;
    let service = Service::new();
    // A rogue relay hands on the nonce of this one; the service signs it for the name it dialled.
    let proof = |client: &Raw, dialled: &str| {
        let signed = register_message(&client.nonce, dialled, service.fingerprint().bytes());
        ClientMessage::Register {
            statement: service.statement(1).bytes().to_vec(),
            signature: service.online.sign_now(&signed),
        }
    };
    let mut rogue = Raw::dial(&relay).await;
    let answer = rogue.ask(&proof(&rogue, "rogue.example:4430")).await;
    assert_eq!(answer, RelayCode::BadProof);

    let mut honest = Raw::dial(&relay).await;
    let answer = honest.ask(&proof(&honest, "relay.example:4430")).await;
    assert_eq!(answer, RelayCode::Ok);
}

#[tokio::test]
async fn a_relay_that_joins_a_gateway_to_another_service_gains_nothing() {
    let (wanted, other) = (Service::new(), Service::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rogue: Address = format!("relay://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let gateway_key = SoftwareStaticKey::generate(&mut rng());
    let config = InitiatorConfig {
        suite: Suite::AesGcm,
        pin: wanted.fingerprint(),
        held: None,
        static_key: gateway_key.public(),
        purpose: Purpose::Deliver,
        version: String::new(),
    };

    let (connected, accepted) =
        tokio::join!(link::connect(&rogue, config, &gateway_key, &Shelf), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let greeting = Greeting { nonce: [3; 32] }.encode();
            stream.write_all(&greeting).await.unwrap();
            let length = stream.read_u16().await.unwrap();
            let mut hello = vec![0; usize::from(length)];
            stream.read_exact(&mut hello).await.unwrap();
            let answer = Answer {
                code: RelayCode::Ok,
            }
            .encode();
            let length = u16::try_from(answer.len()).unwrap();
            let answer = [&length.to_be_bytes(), answer.as_slice()].concat();
            stream.write_all(&answer).await.unwrap();
            // And now everything goes to a service that nobody asked for.
            let config = ResponderConfig {
                statement: other.statement(1),
                static_key: other.key.public(),
            };
            link::accept(stream, config, &other.key, &NobodyComes).await
        });

    assert!(connected.is_err(), "the gateway talks to another service");
    assert!(accepted.is_err(), "the service talks to another's gateway");
}

#[tokio::test]
async fn a_registration_is_good_for_one_connection() {
    let relay = Relay::start().await;
    let service = Service::new();
    let mut first = Raw::dial(&relay).await;
    let mut second = Raw::dial(&relay).await;
    let message = service.registration(&relay, &first.nonce);

    assert_eq!(second.ask(&message).await, RelayCode::BadProof);
    assert_eq!(first.ask(&message).await, RelayCode::Ok);
}

#[tokio::test]
async fn only_a_relay_key_of_the_statement_registers() {
    let relay = Relay::start().await;
    let mut service = Service::new();
    service.online_bits = OnlineKey::COMMAND;
    assert_refused(service.register(&relay, 1).await, RelayCode::BadProof);

    let service = Service::new();
    let stranger = SoftwareSigningKey::generate(&mut rng());
    let registered = link::relay::register(&relay.address, &service.statement(1), &stranger).await;
    assert_refused(registered, RelayCode::BadProof);
}

#[tokio::test]
async fn an_altered_statement_does_not_register() {
    let relay = Relay::start().await;
    let service = Service::new();
    let statement = service.statement(1).bytes().to_vec();
    for position in (0..statement.len()).step_by(97) {
        let mut client = Raw::dial(&relay).await;
        let ClientMessage::Register { signature, .. } = service.registration(&relay, &client.nonce)
        else {
            panic!("not a registration");
        };
        let mut statement = statement.clone();
        statement[position] ^= 1;
        let message = ClientMessage::Register {
            statement,
            signature,
        };
        assert_eq!(
            client.ask(&message).await,
            RelayCode::BadProof,
            "{position}"
        );
    }
}

#[tokio::test]
async fn an_older_statement_is_refused_even_when_the_newer_service_has_left() {
    let relay = Relay::start().await;
    let service = Service::new();
    let newer = service.register(&relay, 2).await.unwrap();
    assert_refused(service.register(&relay, 1).await, RelayCode::BadProof);
    drop(newer);
    relay.until_unknown(&service).await;
    assert_refused(service.register(&relay, 1).await, RelayCode::BadProof);
    service.register(&relay, 3).await.unwrap();
}

#[tokio::test]
async fn two_statements_with_one_serial_are_not_both_accepted() {
    let relay = Relay::start().await;
    let mut service = Service::new();
    let _first = service.register(&relay, 1).await.unwrap();
    let _second = service.register(&relay, 1).await.unwrap();
    service.record = RecordKey::generate(&mut rng());
    assert_refused(service.register(&relay, 1).await, RelayCode::BadProof);
}

#[tokio::test]
async fn when_one_instance_leaves_the_other_is_called() {
    let relay = Relay::start().await;
    let service = Service::new();
    let first = service.register(&relay, 1).await.unwrap();
    let mut second = service.register(&relay, 1).await.unwrap();
    drop(first);
    // The relay may notice the first one's end while it calls it; then that gateway is refused.
    let called = async {
        loop {
            let hello = relay.hello(&service);
            tokio::select! {
                id = incoming(&mut second) => return id,
                _ = hello => {}
            }
        }
    };
    timeout(PATIENCE, called).await.unwrap();
}

#[tokio::test]
async fn a_flood_from_one_address_is_refused_and_passes() {
    let relay = Relay::with(Limits {
        pending_per_address: 2,
        ..Limits::default()
    })
    .await;
    let first = Raw::dial(&relay).await;
    let _second = Raw::dial(&relay).await;
    for _ in 0..3 {
        let mut third = Raw::dial(&relay).await;
        assert_eq!(third.answer().await, RelayCode::Limit);
        assert_eq!(ended(&mut third.stream).await, 0);
    }

    drop(first);
    relay
        .until(|code| code == RelayCode::NoSuchService, &Service::new())
        .await;
}

#[tokio::test]
async fn a_service_fetches_all_gateways_that_wait_for_it_at_once() {
    let relay = Relay::with(Limits {
        pending_per_address: 2,
        pending_per_service: 20,
        ..Limits::default()
    })
    .await;
    let service = Service::new();
    let mut registration = service.register(&relay, 1).await.unwrap();
    // All that one address may have, and nobody accepts before all are there.
    let mut fetching = Vec::new();
    for _ in 0..20 {
        fetching.push(Raw::dial(&relay).await);
    }
    let mut client = fetching.pop().unwrap();
    let hello = ClientMessage::Hello {
        service: *service.fingerprint().bytes(),
        token: None,
    };
    let mut last = fetching.pop().unwrap();
    let both = async {
        tokio::join!(client.ask(&hello), async {
            let id = incoming(&mut registration).await;
            last.ask(&ClientMessage::Accept { id }).await
        })
    };
    let answers = timeout(PATIENCE, both).await.expect("nobody is called");
    assert_eq!(answers, (RelayCode::Ok, RelayCode::Ok));

    // Who leaves takes the room along.
    drop((registration, fetching));
    relay
        .until(|code| code == RelayCode::NoSuchService, &service)
        .await;
    let _held = [Raw::dial(&relay).await, Raw::dial(&relay).await];
    let refused =
        async { while Raw::dial(&relay).await.answer_soon().await != Some(RelayCode::Limit) {} };
    timeout(PATIENCE, refused).await.unwrap();
}

#[tokio::test]
async fn all_pending_connections_together_have_a_limit() {
    let relay = Relay::with(Limits {
        pending: 1,
        ..Limits::default()
    })
    .await;
    let _first = Raw::dial(&relay).await;
    let mut second = Raw::dial(&relay).await;
    assert_eq!(second.answer().await, RelayCode::Busy);
}

#[tokio::test]
async fn gateways_that_wait_for_one_service_have_a_limit() {
    let relay = Relay::with(Limits {
        pending_per_service: 1,
        ..Limits::default()
    })
    .await;
    let service = Service::new();
    let mut registration = service.register(&relay, 1).await.unwrap();
    let waiting = async {
        incoming(&mut registration).await;
        assert_refused(relay.hello(&service).await, RelayCode::Busy);
    };
    tokio::select! {
        () = waiting => {}
        _ = relay.hello(&service) => panic!("nobody has accepted"),
    }
}

#[tokio::test]
async fn no_more_gateways_than_configured_are_served() {
    let relay = Relay::with_config(|mut config| {
        config.max_clients = 1;
        config
    })
    .await;
    let joined = relay.joined().await;
    let service = Service::new();
    let _registration = service.register(&relay, 1).await.unwrap();
    assert_refused(relay.hello(&service).await, RelayCode::Busy);

    drop(joined);
    relay
        .until(|code| code == RelayCode::NoSuchService, &Service::new())
        .await;
}

#[tokio::test]
async fn registrations_of_one_service_have_a_limit() {
    let relay = Relay::with(Limits {
        instances_per_service: 1,
        ..Limits::default()
    })
    .await;
    let service = Service::new();
    let _first = service.register(&relay, 1).await.unwrap();
    assert_refused(service.register(&relay, 1).await, RelayCode::Limit);
}

#[tokio::test]
async fn services_have_a_limit_and_an_absent_one_makes_room() {
    let relay = Relay::with(Limits {
        services: 1,
        ..Limits::default()
    })
    .await;
    let first = Service::new();
    let registration = first.register(&relay, 1).await.unwrap();
    let second = Service::new();
    assert_refused(second.register(&relay, 1).await, RelayCode::Busy);
    drop(registration);
    relay.until_unknown(&first).await;
    second.register(&relay, 1).await.unwrap();
}

#[tokio::test]
async fn only_listed_services_register_and_are_asked_for() {
    let (listed, stranger) = (Service::new(), Service::new());
    let relay = Relay::with_config(|mut config| {
        config.services = Some([*listed.fingerprint().bytes()].into());
        config
    })
    .await;
    assert_refused(stranger.register(&relay, 1).await, RelayCode::NotAdmitted);
    assert_refused(relay.hello(&stranger).await, RelayCode::NotAdmitted);

    assert_refused(relay.hello(&listed).await, RelayCode::NoSuchService);
    let mut registration = listed.register(&relay, 1).await.unwrap();
    let (client, service) = tokio::join!(relay.hello(&listed), async {
        let id = incoming(&mut registration).await;
        link::relay::accept(&relay.address, id).await
    });
    client.unwrap();
    service.unwrap();
}

#[tokio::test]
async fn only_who_knows_a_token_is_served() {
    let token = |id, secret| Token {
        id: [id; 8],
        secret: Zeroizing::new([secret; 32]),
    };
    let relay = Relay::with_config(|mut config| {
        config.admit = Admit::Tokens(vec![token(1, 1), token(2, 2)]);
        config
    })
    .await;
    let service = Service::new();
    let dial = async |token: Option<&Token>| {
        link::dial(&relay.address, &service.fingerprint(), token).await
    };
    // Admitted, and then told that there is no such service.
    for known in [token(1, 1), token(2, 2)] {
        assert_refused(dial(Some(&known)).await, RelayCode::NoSuchService);
    }
    for unknown in [None, Some(token(1, 2)), Some(token(3, 3))] {
        assert_refused(dial(unknown.as_ref()).await, RelayCode::NotAdmitted);
    }
}

#[tokio::test]
async fn a_hello_is_good_for_one_connection() {
    let secret = [9; 32];
    let relay = Relay::with_config(|mut config| {
        config.admit = Admit::Tokens(vec![Token {
            id: [1; 8],
            secret: Zeroizing::new(secret),
        }]);
        config
    })
    .await;
    let mut first = Raw::dial(&relay).await;
    let mut second = Raw::dial(&relay).await;
    let hello = ClientMessage::Hello {
        service: [5; 32],
        token: Some(wire::relay::Token {
            id: [1; 8],
            admit: wire::relay::admit(&secret, &first.nonce, &[5; 32]),
        }),
    };
    assert_eq!(second.ask(&hello).await, RelayCode::NotAdmitted);
    assert_eq!(first.ask(&hello).await, RelayCode::NoSuchService);
}

#[tokio::test]
async fn a_registered_service_that_answers_pings_stays_and_another_does_not() {
    let relay = Relay::with(Limits {
        ping_interval: Duration::from_millis(50),
        pong_time: Duration::from_millis(500),
        ..Limits::default()
    })
    .await;
    let (answering, silent) = (Service::new(), Service::new());
    let mut answers = answering.register(&relay, 1).await.unwrap();
    let _unread = silent.register(&relay, 1).await.unwrap();
    tokio::select! {
        id = incoming(&mut answers) => panic!("nobody called {id:?}"),
        () = relay.until_unknown(&silent) => {}
    }

    let (_client, _id) = tokio::select! {
        both = async { tokio::join!(relay.hello(&answering), async {
            let id = incoming(&mut answers).await;
            link::relay::accept(&relay.address, id).await.unwrap()
        }) } => both,
        () = sleep(PATIENCE) => panic!("the answering service was dropped"),
    };
}

#[tokio::test]
async fn a_relay_that_stops_says_so_lets_talks_end_and_takes_nobody_new() {
    let relay = Relay::with(Limits {
        drain_time: PATIENCE,
        ..Limits::default()
    })
    .await;
    let service = Service::new();
    let mut registration = service.register(&relay, 1).await.unwrap();
    let (mut client, mut peer) = relay.joined().await;

    relay.stop.cancel();

    assert_eq!(registration.next().await.unwrap(), RelayEvent::Drain);
    assert_refused(relay.hello(&service).await, RelayCode::Draining);
    assert_refused(service.register(&relay, 1).await, RelayCode::Draining);
    client.write_all(b"still").await.unwrap();
    let mut still = [0; 5];
    peer.read_exact(&mut still).await.unwrap();
    assert!(!relay.serving.is_finished());

    drop((client, peer));
    timeout(PATIENCE / 2, relay.serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_relay_that_stops_does_not_wait_for_ever() {
    let relay = Relay::with(Limits {
        drain_time: Duration::from_millis(100),
        ..Limits::default()
    })
    .await;
    let (mut client, _service) = relay.joined().await;
    relay.stop.cancel();
    timeout(PATIENCE, relay.serving)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(ended(&mut client).await, 0);
}

/// A relay on loopback.
struct Relay {
    address: Address,
    stop: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Relay {
    async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        Self::with_config(|mut config| {
            config.limits = limits;
            config
        })
        .await
    }

    async fn with_config(change: impl FnOnce(RelayConfig) -> RelayConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = listener.local_addr().unwrap().to_string();
        let address = format!("relay://{name}").parse().unwrap();
        let config = change(RelayConfig {
            names: vec!["relay.example:4430".to_owned(), name],
            services: None,
            admit: Admit::Open,
            max_clients: 100,
            limits: Limits::default(),
            metrics: RelayMetrics::default(),
        });
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, config, stop.clone()));
        Self {
            address,
            stop,
            serving,
        }
    }

    async fn hello(&self, service: &Service) -> Result<TcpStream, LinkError> {
        link::dial(&self.address, &service.fingerprint(), None).await
    }

    /// A gateway's and a service's connection that the relay has joined.
    async fn joined(&self) -> (TcpStream, TcpStream) {
        let service = Service::new();
        let mut registration = service.register(self, 1).await.unwrap();
        let (client, service) = tokio::join!(self.hello(&service), async {
            let id = incoming(&mut registration).await;
            link::relay::accept(&self.address, id).await
        });
        (client.unwrap(), service.unwrap())
    }

    /// Waits until the relay has noticed that the service has left.
    async fn until_unknown(&self, service: &Service) {
        self.until(|code| code == RelayCode::NoSuchService, service)
            .await;
    }

    async fn until(&self, expected: impl Fn(RelayCode) -> bool, service: &Service) {
        let asking = async {
            loop {
                // A hello that is neither refused nor joined waits for a service that has left.
                let answer = timeout(Duration::from_millis(100), self.hello(service)).await;
                match answer {
                    Ok(Err(LinkError::RelayRefused(code))) if expected(code) => return,
                    Ok(_) => sleep(Duration::from_millis(10)).await,
                    Err(_) => {}
                }
            }
        };
        timeout(PATIENCE, asking).await.unwrap();
    }
}

/// A service with one online key.
struct Service {
    identity: SoftwareSigningKey,
    key: SoftwareStaticKey,
    record: RecordKey,
    online: SoftwareSigningKey,
    online_bits: u64,
}

impl Service {
    fn new() -> Self {
        Self {
            identity: SoftwareSigningKey::generate(&mut rng()),
            key: SoftwareStaticKey::generate(&mut rng()),
            record: RecordKey::generate(&mut rng()),
            online: SoftwareSigningKey::generate(&mut rng()),
            online_bits: OnlineKey::RELAY,
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        self.statement(1).fingerprint()
    }

    fn statement(&self, serial: u64) -> Statement {
        let content = StatementContent {
            serial,
            channel_keys: vec![self.key.public()],
            record_keys: vec![self.record.public()],
            online_keys: vec![OnlineKey {
                key: self.online.public(),
                bits: self.online_bits,
            }],
        };
        Statement::issue(content, &self.identity).unwrap()
    }

    async fn register(&self, relay: &Relay, serial: u64) -> Result<Registration, LinkError> {
        link::relay::register(&relay.address, &self.statement(serial), &self.online).await
    }

    /// The registration for the connection with this nonce.
    fn registration(&self, relay: &Relay, nonce: &[u8; 32]) -> ClientMessage {
        let name = relay.address.authority();
        let signed = register_message(nonce, &name, self.fingerprint().bytes());
        ClientMessage::Register {
            statement: self.statement(1).bytes().to_vec(),
            signature: self.online.sign_now(&signed),
        }
    }
}

/// A client that says what it likes.
struct Raw {
    stream: TcpStream,
    nonce: [u8; 32],
}

impl Raw {
    async fn dial(relay: &Relay) -> Self {
        let authority = relay.address.authority();
        let mut stream = TcpStream::connect(authority).await.unwrap();
        let mut greeting = [0; GREETING_BYTES];
        stream.read_exact(&mut greeting).await.unwrap();
        let nonce = Greeting::decode(&greeting).unwrap().nonce;
        Self { stream, nonce }
    }

    async fn ask(&mut self, message: &ClientMessage) -> RelayCode {
        let message = message.encode();
        let length = u16::try_from(message.len()).unwrap();
        let frame = [&length.to_be_bytes(), message.as_slice()].concat();
        self.stream.write_all(&frame).await.unwrap();
        self.answer().await
    }

    /// The answer of a relay that does not wait for a question.
    async fn answer_soon(&mut self) -> Option<RelayCode> {
        timeout(Duration::from_millis(100), self.answer())
            .await
            .ok()
    }

    async fn answer(&mut self) -> RelayCode {
        let length = self.stream.read_u16().await.unwrap();
        let mut answer = vec![0; usize::from(length)];
        self.stream.read_exact(&mut answer).await.unwrap();
        Answer::decode(&answer).unwrap().code
    }
}

struct Shelf;

impl KeepStatement for Shelf {
    fn keep<'a>(&'a self, _statement: &'a Statement) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

struct Door;

impl Registry for Door {
    fn admit<'a>(&'a self, _peer: &'a PeerHello) -> BoxFuture<'a, Admission> {
        Box::pin(async { Admission::Ok })
    }
}

/// A service's door that no gateway may reach.
struct NobodyComes;

impl Registry for NobodyComes {
    fn admit<'a>(&'a self, _peer: &'a PeerHello) -> BoxFuture<'a, Admission> {
        panic!("a gateway has shown itself")
    }
}

/// Writes until nothing more is taken for a while, and returns what was.
async fn fill(client: &TcpStream) -> Vec<u8> {
    let mut sent = Vec::new();
    let chunk: Vec<u8> = (0..=250).cycle().take(64 * 1024).collect();
    while timeout(Duration::from_millis(500), client.writable())
        .await
        .is_ok()
    {
        let from = sent.len() % 251;
        match client.try_write(&chunk[from..]) {
            Ok(count) => sent.extend_from_slice(&chunk[from..from + count]),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        // Both ends of two connections, each up to the kernel's maximum for a socket (tcp_rmem,
        // tcp_wmem), and what the relay holds.
        assert!(sent.len() < 64 << 20, "64 MiB went where nobody took them");
    }
    sent
}

async fn incoming(registration: &mut Registration) -> link::relay::ConnectionId {
    match registration.next().await.unwrap() {
        RelayEvent::Incoming(id) => id,
        other @ (RelayEvent::Drain | _) => panic!("{other:?}"),
    }
}

/// How many bytes come before the end, which may be a reset.
async fn ended(stream: &mut TcpStream) -> usize {
    let mut rest = Vec::new();
    let end = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    let _ = end.expect("the connection does not end");
    rest.len()
}

fn assert_refused<T>(result: Result<T, LinkError>, expected: RelayCode) {
    match result {
        Err(LinkError::RelayRefused(code)) => assert_eq!(code, expected),
        Err(other) => panic!("{other}, not {expected}"),
        Ok(_) => panic!("accepted, not {expected}"),
    }
}

fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
