//! Never more bytes than allowed, and the least urgent go first.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod fixture;

use fixture::{ROOMY, TIGHT, batch, close, epoch, epoch_id, fill, folder_bytes, held, lane};
use spool::{BATCH_BYTES_MAX, Limits, Spool, SpoolError};
use wire::Class;

#[tokio::test]
async fn the_folder_never_exceeds_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), TIGHT).unwrap();
    let lanes = [Class::Bulk, Class::Normal, Class::Critical].map(|class| lane(1, class));
    for lane in lanes {
        spool.open_epoch(epoch(lane, 0)).await.unwrap();
    }
    // From many to a page to one that fills half of the spool.
    let sizes = [40, 700, 5_000, 90_000, 300, 1_048_576, 12_000, 2_000];
    let mut offered = 0;
    let mut most = 0;

    for number in 0..100 {
        for (position, lane) in lanes.into_iter().enumerate() {
            let size = sizes[(number as usize + 3 * position) % sizes.len()];
            match spool.append(batch(lane, 0, number, size)).await {
                Ok(_) => offered += size,
                Err(error) => assert!(matches!(error, SpoolError::Full), "{error:?}"),
            }
            let bytes = folder_bytes(folder.path());
            assert!(
                bytes <= TIGHT.max_bytes,
                "{bytes} after {number} of {lane:?}"
            );
            most = most.max(bytes);
        }
    }

    assert!(
        TIGHT.max_bytes * 4 < offered as u64,
        "filled far beyond the limit"
    );
    assert!(TIGHT.max_bytes / 2 < most, "the space is used");
}

#[tokio::test]
async fn the_folder_never_exceeds_the_limit_with_the_largest_batches() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), TIGHT).unwrap();
    let lane = lane(1, Class::Normal);
    spool.open_epoch(epoch(lane, 0)).await.unwrap();

    for number in 0..20 {
        let largest = batch(lane, 0, number, BATCH_BYTES_MAX - 100);
        spool.append(largest).await.unwrap();
        let bytes = folder_bytes(folder.path());
        assert!(bytes <= TIGHT.max_bytes, "{bytes} after {number}");
    }

    assert_eq!(held(&spool, lane).await.last(), Some(&(0, 19)));
}

#[tokio::test]
async fn bulk_goes_before_normal_before_critical_and_the_oldest_first() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), TIGHT).unwrap();
    let (bulk, normal, critical) = (
        lane(1, Class::Bulk),
        lane(1, Class::Normal),
        lane(1, Class::Critical),
    );
    fill(&spool, critical, 0, 3, 100_000).await;
    fill(&spool, bulk, 0, 4, 100_000).await;
    fill(&spool, normal, 0, 4, 100_000).await;
    fill(&spool, bulk, 1, 2, 100_000).await;
    spool.open_epoch(epoch(critical, 1)).await.unwrap();

    let mut order = Vec::new();
    let mut before = [held(&spool, bulk).await, held(&spool, normal).await];
    for number in 0.. {
        spool
            .append(batch(critical, 1, number, 100_000))
            .await
            .unwrap();
        let now = [held(&spool, bulk).await, held(&spool, normal).await];
        for (class, (before, now)) in ["bulk", "normal"].iter().zip(before.iter().zip(&now)) {
            let gone = before.iter().filter(|batch| !now.contains(batch));
            order.extend(gone.map(|(index, number)| (*class, *index, *number)));
        }
        before = now;
        if held(&spool, critical).await.first() != Some(&(0, 0)) {
            break;
        }
    }

    assert_eq!(
        order,
        [
            ("bulk", 0, 0),
            ("bulk", 0, 1),
            ("bulk", 0, 2),
            ("bulk", 0, 3),
            ("bulk", 1, 0),
            ("bulk", 1, 1),
            ("normal", 0, 0),
            ("normal", 0, 1),
            ("normal", 0, 2),
            ("normal", 0, 3),
        ]
    );
    let header = spool.header(epoch_id(bulk, 0)).await.unwrap();
    assert_eq!(header, None, "an epoch that is gone needs no header");
}

#[tokio::test]
async fn among_lanes_of_one_class_the_batch_that_came_first_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), TIGHT).unwrap();
    let (one, two) = (lane(1, Class::Normal), lane(2, Class::Normal));
    spool.open_epoch(epoch(one, 0)).await.unwrap();
    fill(&spool, two, 0, 2, 300_000).await;
    fill(&spool, one, 0, 2, 300_000).await;
    spool.open_epoch(epoch(one, 1)).await.unwrap();

    let mut number = 0;
    while held(&spool, one).await.first() == Some(&(0, 0)) {
        spool.append(batch(one, 1, number, 300_000)).await.unwrap();
        number += 1;
    }

    assert_eq!(held(&spool, two).await, []);
}

#[tokio::test]
async fn nothing_more_urgent_makes_room_for_less_urgent() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), TIGHT).unwrap();
    let (bulk, critical) = (lane(1, Class::Bulk), lane(1, Class::Critical));
    fill(&spool, bulk, 0, 1, 100).await;
    fill(&spool, critical, 0, 30, 100_000).await;
    let before = spool.status().await.unwrap();
    let kept = held(&spool, critical).await;

    spool.open_epoch(epoch(bulk, 1)).await.unwrap();
    let refused = spool.append(batch(bulk, 1, 0, 1_000_000)).await;

    let error = refused.unwrap_err();
    assert!(matches!(error, SpoolError::Full), "{error:?}");
    assert!(error.advice().contains("spool.max_size"));
    assert_eq!(held(&spool, critical).await, kept);
    assert_eq!(
        spool.status().await.unwrap().lost_readings,
        before.lost_readings
    );
}

#[tokio::test]
async fn what_others_need_of_the_disk_is_left_to_them() {
    let folder = tempfile::tempdir().unwrap();
    let normal = lane(1, Class::Normal);
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    fill(&spool, normal, 0, 40, 50_000).await;
    close(spool, folder.path());
    let database = folder.path().join("spool.db");
    let bytes = database.metadata().unwrap().len();

    let all = Limits {
        min_free_bytes: u64::MAX,
        ..ROOMY
    };
    let spool = Spool::open(folder.path(), all).unwrap();
    for number in 40..80 {
        spool
            .append(batch(normal, 0, number, 50_000))
            .await
            .unwrap();
    }
    let bulk = lane(1, Class::Bulk);
    spool.open_epoch(epoch(bulk, 0)).await.unwrap();
    let refused = spool.append(batch(bulk, 0, 0, 500_000)).await;
    let held = held(&spool, normal).await;
    close(spool, folder.path());

    assert_eq!(database.metadata().unwrap().len(), bytes, "it did not grow");
    assert_eq!(held.last(), Some(&(0, 79)), "the newest are there");
    assert!((30..40).contains(&held.len()), "in the place of older ones");
    let error = refused.unwrap_err();
    assert!(matches!(error, SpoolError::Reserved { .. }), "{error:?}");
    assert!(error.advice().contains("spool.min_free"));
}

#[tokio::test]
async fn a_lowered_limit_holds_from_the_next_append_on() {
    let folder = tempfile::tempdir().unwrap();
    let lane = lane(1, Class::Normal);
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    fill(&spool, lane, 0, 400, 30_000).await;
    close(spool, folder.path());
    assert!(TIGHT.max_bytes * 2 < folder_bytes(folder.path()));

    let spool = Spool::open(folder.path(), TIGHT).unwrap();
    spool.append(batch(lane, 0, 400, 30_000)).await.unwrap();
    let kept = held(&spool, lane).await;
    let status = spool.status().await.unwrap();
    close(spool, folder.path());

    assert!(folder_bytes(folder.path()) <= TIGHT.max_bytes);
    assert_eq!(kept.last(), Some(&(0, 400)));
    let kept = kept.len() as u64;
    assert!(30 < kept, "no more than needed is dropped: {kept} left");
    assert_eq!(status.lost_readings, (401 - kept) * 10);
}

#[tokio::test]
async fn a_drained_spool_gives_the_disk_back() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let (lane, stays) = (lane(1, Class::Normal), lane(2, Class::Normal));
    fill(&spool, lane, 0, 300, 30_000).await;
    fill(&spool, stays, 0, 5, 1000).await;

    for next in 1..=300 {
        spool.ack(lane, epoch_id(lane, 0), next).await.unwrap();
    }

    assert_eq!(held(&spool, stays).await.len(), 5);
    let bytes = folder_bytes(folder.path());
    assert!(bytes < 2 * 1024 * 1024, "{bytes} bytes after 9 MB");
}

#[tokio::test]
async fn a_limit_too_small_for_any_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        max_bytes: TIGHT.max_bytes - 1,
        ..TIGHT
    };

    let error = Spool::open(folder.path(), limits).unwrap_err();

    assert!(matches!(error, SpoolError::LimitTooSmall { .. }));
    assert_eq!(folder_bytes(folder.path()), 0);
}

#[tokio::test]
async fn small_values_and_lanes_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    for number in 0..spool::KEYS_MAX {
        spool.put(&format!("key-{number}"), vec![0]).await.unwrap();
    }

    let another = spool.put("key-too-many", vec![0]).await;
    let again = spool.put("key-0", vec![1]).await;
    let large = spool
        .put("key-0", vec![0; spool::VALUE_BYTES_MAX + 1])
        .await;

    assert!(matches!(another, Err(SpoolError::TooMany { .. })));
    assert!(matches!(large, Err(SpoolError::Oversized { .. })));
    again.unwrap();
    assert_eq!(spool.get("key-0").await.unwrap(), Some(vec![1]));
}
