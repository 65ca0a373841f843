//! The upload against a scripted service, over a real link on loopback.

mod site;

use channel::Epoch;
use spool::{NewBatch, NewEpoch};

use super::*;
use crate::fixture::Keys;
use site::Site;

#[tokio::test]
async fn acks_let_the_spool_forget_and_nothing_else_does() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    for _ in 0..3 {
        site.append(&mut epoch, 10).await;
    }
    let mut far = site.start().await;
    let ToService::Hello(offers) = far.hear().await else {
        panic!("it speaks without a greeting");
    };
    assert_eq!(offers[1].oldest, Some((epoch.id(), 0)));
    assert_eq!(offers[0].oldest, None);
    far.welcome(vec![]).await;
    assert!(matches!(far.hear().await, ToService::Header(_)));
    assert_eq!(far.batches(3).await, [0, 1, 2]);
    assert_eq!(site.held(Class::Normal).await, 3);

    far.ack(&epoch, 2).await;
    // Written down when the spool has forgotten.
    while site.service.link().acked_readings != 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(site.held(Class::Normal).await, 1);
    assert!(site.service.link().last_ack_ms.is_some());
    // What comes later goes without a second header.
    site.append(&mut epoch, 10).await;
    assert_eq!(far.batches(1).await, [3]);
}

#[tokio::test]
async fn the_welcome_lets_the_spool_forget_and_what_it_lacks_is_sent() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    for _ in 0..3 {
        site.append(&mut epoch, 10).await;
    }
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![site.known(&epoch, 2)]).await;

    assert!(matches!(far.hear().await, ToService::Header(_)));
    assert_eq!(far.batches(1).await, [2]);
    assert_eq!(site.held(Class::Normal).await, 1);
}

#[tokio::test]
async fn an_ack_beyond_what_was_sent_breaks_the_rules() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    assert_eq!(far.batches(1).await, [0]);

    far.ack(&epoch, 2).await;

    assert!(matches!(far.end().await, Err(Failure::Protocol(_))));
    assert_eq!(site.held(Class::Normal).await, 1);
}

#[tokio::test]
async fn an_ack_may_cover_what_left_by_hand_and_no_more() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    for _ in 0..4 {
        site.append(&mut epoch, 60_000).await;
    }
    site.spool.note_exported(epoch.id(), 3).await.unwrap();
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    assert_eq!(far.batches(1).await, [0]);

    far.ack(&epoch, 3).await;
    assert_eq!(far.batches(1).await, [3]);
    assert_eq!(site.held(Class::Normal).await, 1);

    far.ack(&epoch, 5).await;
    assert!(matches!(far.end().await, Err(Failure::Protocol(_))));
    assert_eq!(site.held(Class::Normal).await, 1);
}

#[tokio::test]
async fn an_ack_for_an_epoch_that_nobody_knows_changes_nothing() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.say(&ToGateway::Ack {
        epoch_id: [7; 32],
        next: 9,
    })
    .await;

    site.append(&mut epoch, 10).await;

    far.hear().await;
    assert_eq!(far.batches(1).await, [0]);
    assert_eq!(site.held(Class::Normal).await, 1);
}

#[tokio::test]
async fn numbers_that_are_gone_are_declared_before_the_first_that_is_held() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    epoch
        .seal(b"one that was lost before it was stored")
        .unwrap();
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;

    far.hear().await;
    let below = ToService::Below {
        chain_id: site.spool.chain_id(),
        epoch_id: epoch.id(),
        from: 1,
    };
    assert_eq!(far.hear().await, below);
    assert_eq!(far.batches(1).await, [1]);
}

#[tokio::test]
async fn what_is_evicted_during_an_upload_is_declared_and_the_rest_goes_on() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Bulk, true).await;
    for _ in 0..20 {
        site.append(&mut epoch, 60_000).await;
    }
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    assert_eq!(far.batches(1).await, [0]);

    // Another service's critical data needs the room.
    let other = Lane {
        service: [9; 32],
        class: Class::Critical,
    };
    let rival = NewEpoch {
        lane: other,
        epoch_id: [9; 32],
        index: 0,
        unsigned_header: vec![0; 100],
    };
    site.spool.open_epoch(rival).await.unwrap();
    let mut number = 0;
    while site.held(Class::Bulk).await > 10 {
        let batch = NewBatch {
            lane: other,
            epoch_id: [9; 32],
            number,
            chain: [0; 32],
            tallies: Vec::new(),
            from_ms: 0,
            until_ms: 0,
            bytes: vec![0; 200_000],
            ledger_ids: Vec::new(),
        };
        site.spool.append(batch).await.unwrap();
        number += 1;
    }
    let oldest = site.spool.lane(site.lane(Class::Bulk)).await.unwrap();
    let (_, first) = oldest.oldest.unwrap();
    assert!(1 < first);
    far.ack(&epoch, 1).await;

    let below = ToService::Below {
        chain_id: site.spool.chain_id(),
        epoch_id: epoch.id(),
        from: first,
    };
    assert_eq!(far.hear().await, below);
    assert_eq!(far.batches(1).await, [first]);
    // Declared gone, so the ack may pass over it; and the ledger has it.
    far.ack(&epoch, first + 1).await;
    assert_eq!(far.batches(1).await, [first + 1]);
    let ledger = site.spool.ledger_open(*site.keys.pin().bytes()).await;
    assert_eq!(ledger.unwrap()[0].batches[0].last, first - 1);
}

#[tokio::test]
async fn a_service_that_lags_behind_what_was_forgotten_is_told_so() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    for _ in 0..3 {
        site.append(&mut epoch, 10).await;
    }
    let lane = site.lane(Class::Normal);
    site.spool.ack(lane, epoch.id(), 3).await.unwrap();
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![site.known(&epoch, 1)]).await;

    assert!(matches!(far.hear().await, ToService::Header(_)));
    let below = ToService::Below {
        chain_id: site.spool.chain_id(),
        epoch_id: epoch.id(),
        from: 3,
    };
    assert_eq!(far.hear().await, below);
    // Its answer is no breach.
    far.ack(&epoch, 3).await;
    site.append(&mut epoch, 10).await;
    assert_eq!(far.batches(1).await, [3]);
}

#[tokio::test]
async fn no_more_than_the_window_is_on_its_way() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    for _ in 0..5 {
        site.append(&mut epoch, 30_000).await;
    }
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;

    assert_eq!(far.batches(2).await, [0, 1]);
    far.hears_nothing().await;
    far.ack(&epoch, 1).await;
    assert_eq!(far.batches(1).await, [2]);
    far.hears_nothing().await;
}

#[tokio::test]
async fn a_batch_larger_than_the_window_travels_alone() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    site.append(&mut epoch, 100_000).await;
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;

    assert_eq!(far.batches(1).await, [0]);
    far.hears_nothing().await;
    far.ack(&epoch, 1).await;
    assert_eq!(far.batches(1).await, [1]);
}

#[tokio::test]
async fn critical_goes_first_and_a_header_that_is_not_signed_holds_up_its_lane_only() {
    let site = Site::new();
    let mut bulk = site.open_epoch(Class::Bulk, true).await;
    let mut normal = site.open_epoch(Class::Normal, false).await;
    let mut critical = site.open_epoch(Class::Critical, true).await;
    for epoch in [&mut bulk, &mut normal, &mut critical] {
        site.append(epoch, 10).await;
    }
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;

    for epoch in [&critical, &bulk] {
        assert!(matches!(far.hear().await, ToService::Header(_)));
        assert_eq!(far.batch().await.epoch_id, epoch.id());
    }
    far.hears_nothing().await;
    site.sign(&normal).await;
    assert!(matches!(far.hear().await, ToService::Header(_)));
    assert_eq!(far.batch().await.epoch_id, normal.id());
}

/// An epoch lives an hour, so two hours leave three that nobody has signed for.
#[tokio::test]
async fn two_hours_of_epochs_without_a_tpm_wait_and_leave_in_order_once_it_signs() {
    let site = Site::new();
    let mut epochs = Vec::new();
    for _ in 0..3 {
        let mut epoch = site.open_epoch(Class::Normal, false).await;
        site.append(&mut epoch, 10).await;
        site.append(&mut epoch, 10).await;
        epochs.push(epoch);
    }
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hears_nothing().await;
    assert_eq!(site.held(Class::Normal).await, 6);

    // The TPM is back. The newest first, which must not overtake.
    for epoch in epochs.iter().rev() {
        site.sign(epoch).await;
    }
    for epoch in &epochs {
        assert!(matches!(far.hear().await, ToService::Header(_)));
        for number in 0..2 {
            let batch = far.batch().await;
            assert_eq!((batch.epoch_id, batch.number), (epoch.id(), number));
        }
    }
}

#[tokio::test]
async fn an_epoch_that_cannot_be_opened_is_set_aside_and_the_lane_goes_on() {
    let site = Site::new();
    let mut lost = site.open_epoch(Class::Normal, true).await;
    site.append(&mut lost, 60_000).await;
    site.append(&mut lost, 60_000).await;
    let mut next = site.open_epoch(Class::Normal, true).await;
    site.append(&mut next, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    assert_eq!(far.batch().await.epoch_id, lost.id());

    far.say(&problem(&lost, ProblemCode::Unopenable)).await;

    assert!(matches!(far.hear().await, ToService::Header(_)));
    assert_eq!(far.batch().await.epoch_id, next.id());
    // Kept until it is evicted.
    assert_eq!(site.held(Class::Normal).await, 3);
}

#[tokio::test]
async fn a_problem_with_an_epoch_that_was_not_sent_sets_nothing_aside() {
    let site = Site::new();
    let mut first = site.open_epoch(Class::Normal, true).await;
    site.append(&mut first, 60_000).await;
    let mut other = site.open_epoch(Class::Normal, true).await;
    site.append(&mut other, 60_000).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    assert_eq!(far.batches(1).await, [0]);

    far.say(&problem(&other, ProblemCode::Unopenable)).await;
    far.ack(&first, 1).await;

    far.hear().await;
    assert_eq!(far.batch().await.epoch_id, other.id());
}

#[tokio::test]
async fn a_batch_called_altered_is_sent_once_more_and_then_set_aside() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    far.batch().await;
    far.say(&problem(&epoch, ProblemCode::Altered)).await;
    assert!(matches!(far.end().await, Err(Failure::Protocol(_))));

    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    far.batch().await;
    far.say(&problem(&epoch, ProblemCode::Altered)).await;

    let mut next = site.open_epoch(Class::Normal, true).await;
    site.append(&mut next, 10).await;
    far.hear().await;
    assert_eq!(far.batch().await.epoch_id, next.id());
}

#[tokio::test]
async fn a_service_that_is_not_ready_is_left_alone_and_keeps_its_place() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;
    far.hear().await;
    far.batch().await;

    far.say(&problem(&epoch, ProblemCode::Later)).await;

    assert!(matches!(far.end().await, Err(Failure::Later)));
    let oldest = site
        .spool
        .lane(site.lane(Class::Normal))
        .await
        .unwrap()
        .oldest;
    assert_eq!(oldest, Some((epoch.id(), 0)));
}

#[tokio::test]
async fn a_batch_that_the_disk_has_damaged_is_not_sent_but_declared_and_in_the_ledger() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    let sealed = epoch.seal(b"a").unwrap();
    let mut damaged = site.new_batch(&sealed);
    *damaged.bytes.last_mut().unwrap() ^= 1;
    site.spool.append(damaged).await.unwrap();
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;

    far.hear().await;
    let below = ToService::Below {
        chain_id: site.spool.chain_id(),
        epoch_id: epoch.id(),
        from: 1,
    };
    assert_eq!(far.hear().await, below);
    assert_eq!(far.batches(1).await, [1]);
    let ledger = site.spool.ledger_open(*site.keys.pin().bytes()).await;
    let entry = ledger.unwrap().remove(0);
    assert_eq!(entry.reason, wire::batch::LossReason::Damaged);
    assert_eq!((entry.batches[0].first, entry.batches[0].last), (0, 0));
}

#[tokio::test]
async fn an_epoch_of_an_earlier_identity_is_not_sent() {
    let mut site = Site::new();
    let now = std::mem::replace(&mut site.keys.gateway, Keys::new().gateway);
    let mut old = site.open_epoch(Class::Normal, true).await;
    site.append(&mut old, 10).await;
    site.keys.gateway = now;
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    far.welcome(vec![]).await;

    far.hear().await;
    assert_eq!(far.batch().await.epoch_id, epoch.id());
    assert_eq!(site.held(Class::Normal).await, 2);
}

#[tokio::test]
async fn a_service_that_knows_more_than_the_spool_is_reported() {
    let site = Site::new();
    let mut epoch = site.open_epoch(Class::Normal, true).await;
    site.append(&mut epoch, 10).await;
    let mut far = site.start().await;
    far.hear().await;
    let mut newer = site.known(&epoch, 0);
    newer.epoch_id = [9; 32];
    far.welcome(vec![newer]).await;
    far.hear().await;

    assert!(site.service.link().problem.unwrap().contains("old copy"));
    // Recording goes on being delivered: the service keeps both.
    assert_eq!(far.batches(1).await, [0]);
}

fn problem(epoch: &Epoch, code: ProblemCode) -> ToGateway {
    ToGateway::Problem {
        epoch_id: epoch.id(),
        number: Some(0),
        code,
    }
}
