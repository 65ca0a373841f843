//! The ledger: every loss once, until its service has it.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod fixture;

use fixture::{ROOMY, RUN, TIGHT, batch, close, epoch, epoch_id, fill, held, lane};
use spool::{Lane, Loss, NewBatch, Spool};
use wire::Class;
use wire::batch::{LedgerEntry, LossReason, LostBatches, Tally};

#[tokio::test]
async fn an_evicted_batch_is_in_the_ledger_with_all_that_is_known_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), TIGHT).unwrap();
    let lane = lane(1, Class::Normal);
    spool.open_epoch(epoch(lane, 0)).await.unwrap();
    let mut evicted = 0;
    for number in 0..40 {
        let appended = spool.append(batch(lane, 0, number, 100_000)).await.unwrap();
        evicted += u32::try_from(appended.evicted_batches).unwrap();
        assert_eq!(appended.evicted_readings, appended.evicted_batches * 10);
    }
    assert!(10 < evicted);
    assert_eq!(held(&spool, lane).await.first(), Some(&(0, evicted)));

    let entries = spool.ledger_open(lane.service).await.unwrap();

    let readings = u64::from(evicted) * 10;
    assert_eq!(
        entries,
        [LedgerEntry {
            id: entries[0].id,
            chain_id: spool.chain_id(),
            reason: LossReason::Full,
            tallies: vec![tally(1, RUN, 0, readings - 1)],
            from_ms: 0,
            until_ms: i64::from(evicted) * 1000 - 1,
            batches: vec![LostBatches {
                epoch_id: epoch_id(lane, 0),
                first: 0,
                last: evicted - 1
            }],
            names: vec![],
        }]
    );
    let status = spool.status().await.unwrap();
    assert_eq!(status.lost_readings, readings);
    assert_eq!(
        status.appended_readings,
        status.lanes[0].readings + status.lost_readings
    );
}

#[tokio::test]
async fn a_handed_out_entry_never_changes_and_later_losses_make_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let lane = lane(1, Class::Normal);
    spool.record_loss(loss(lane, 0, 4)).await.unwrap();
    spool.record_loss(loss(lane, 5, 9)).await.unwrap();

    let first = spool.ledger_open(lane.service).await.unwrap();
    spool.record_loss(loss(lane, 10, 14)).await.unwrap();
    let second = spool.ledger_open(lane.service).await.unwrap();

    assert_eq!(first.len(), 1);
    assert_eq!(first[0].tallies, [tally(1, RUN, 0, 9)]);
    assert_eq!(second.len(), 2);
    assert_eq!(second[0], first[0]);
    assert_eq!(second[1].tallies, [tally(1, RUN, 10, 14)]);
    assert_ne!(second[0].id, second[1].id);
}

#[tokio::test]
async fn a_carried_entry_is_erased_with_its_batch() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let (normal, critical) = (lane(1, Class::Normal), lane(1, Class::Critical));
    spool.record_loss(loss(normal, 0, 4)).await.unwrap();
    fill(&spool, critical, 0, 1, 100).await;
    carry(&spool, critical, 1).await;

    let while_carried = spool.ledger_open(normal.service).await.unwrap();
    spool.ack(critical, epoch_id(critical, 0), 1).await.unwrap();
    let still_carried = spool.ledger_open(normal.service).await.unwrap();
    spool.ack(critical, epoch_id(critical, 0), 2).await.unwrap();
    close(spool, folder.path());
    let spool = Spool::open(folder.path(), ROOMY).unwrap();

    assert_eq!(while_carried, []);
    assert_eq!(still_carried, []);
    assert_eq!(spool.ledger_open(normal.service).await.unwrap(), []);
    assert_eq!(spool.status().await.unwrap().lost_readings, 5, "ever");
}

#[tokio::test]
async fn a_carried_entry_waits_again_unchanged_when_its_batch_is_evicted() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), TIGHT).unwrap();
    let (normal, critical) = (lane(1, Class::Normal), lane(1, Class::Critical));
    spool.record_loss(loss(normal, 0, 4)).await.unwrap();
    spool.open_epoch(epoch(critical, 0)).await.unwrap();
    let carried = carry(&spool, critical, 0).await;
    for number in 1..40 {
        spool
            .append(batch(critical, 0, number, 100_000))
            .await
            .unwrap();
    }
    assert_ne!(held(&spool, critical).await.first(), Some(&(0, 0)));

    let entries = spool.ledger_open(normal.service).await.unwrap();

    assert_eq!(entries[0], carried[0]);
    assert_eq!(entries.len(), 2, "and the loss of the batches is another");
    let lost: u64 = entries[1].tallies.iter().map(|tally| tally.count).sum();
    assert_eq!(spool.status().await.unwrap().lost_readings, 5 + lost);
}

#[tokio::test]
async fn an_entry_in_an_epoch_set_aside_waits_again() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let critical = lane(1, Class::Critical);
    spool.record_loss(loss(critical, 0, 4)).await.unwrap();
    spool.open_epoch(epoch(critical, 0)).await.unwrap();
    let carried = carry(&spool, critical, 0).await;

    spool.set_aside(epoch_id(critical, 0)).await.unwrap();

    assert_eq!(spool.ledger_open([1; 32]).await.unwrap(), carried);
}

#[tokio::test]
async fn reasons_services_and_gaps_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let (one, two) = (lane(1, Class::Normal), lane(2, Class::Normal));
    let range = |first, last| LostBatches {
        epoch_id: [5; 32],
        first,
        last,
    };
    let mut disk = loss(one, 0, 4);
    disk.batches = vec![range(0, 0), range(1, 2), range(4, 4)];
    spool.record_loss(disk).await.unwrap();
    let mut unclean = loss(one, 5, 5);
    unclean.reason = LossReason::UncleanStop;
    spool.record_loss(unclean).await.unwrap();
    spool.record_loss(loss(two, 0, 0)).await.unwrap();

    let entries = spool.ledger_open(one.service).await.unwrap();

    let reasons: Vec<_> = entries.iter().map(|entry| entry.reason).collect();
    assert_eq!(reasons, [LossReason::Disk, LossReason::UncleanStop]);
    assert_eq!(entries[0].batches, [range(0, 2), range(4, 4)]);
    assert_eq!(spool.ledger_open(two.service).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_entry_stays_small_and_its_counts_exact_however_many_sensors_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let lane = lane(1, Class::Normal);
    for round in 0_u8..40 {
        let tallies = (0..100)
            .map(|sensor| tally(sensor + 60 * u32::from(round), [round; 16], 0, 2))
            .collect();
        let batches = (0..50)
            .map(|number| LostBatches {
                epoch_id: [round; 32],
                first: 2 * number,
                last: 2 * number,
            })
            .collect();
        let loss = Loss {
            tallies,
            batches,
            ..loss(lane, 0, 0)
        };
        spool.record_loss(loss).await.unwrap();
    }

    let entries = spool.ledger_open(lane.service).await.unwrap();

    assert_eq!(entries.len(), 1);
    let entry = &entries[0];
    assert!(entry.tallies.len() <= 1025, "{}", entry.tallies.len());
    let count: u64 = entry.tallies.iter().map(|tally| tally.count).sum();
    assert_eq!(count, 40 * 100 * 3);
    assert_eq!(entry.batches.len(), 512);
    assert_eq!(entry.batches[511].epoch_id, [39; 32], "the newest are kept");
    assert!(entry.encode().len() < 100_000);
}

#[tokio::test]
async fn a_full_spool_that_nobody_empties_does_not_collect_entries() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), TIGHT).unwrap();
    let critical = lane(1, Class::Critical);
    spool.open_epoch(epoch(critical, 0)).await.unwrap();

    for number in 0..100 {
        carry(&spool, critical, number).await;
    }

    // Sixteen are sealed, and one is open.
    assert_eq!(rows(&spool, &folder).await, 17);
}

/// Appends a batch that carries what the ledger hands out.
async fn carry(spool: &Spool, lane: Lane, number: u32) -> Vec<LedgerEntry> {
    let entries = spool.ledger_open(lane.service).await.unwrap();
    let carrier = NewBatch {
        ledger_ids: entries.iter().map(|entry| entry.id).collect(),
        ..batch(lane, 0, number, 200_000)
    };
    spool.append(carrier).await.unwrap();
    entries
}

/// Entries in the file, whoever carries them, and that their counts are those of the status.
async fn rows(spool: &Spool, folder: &tempfile::TempDir) -> usize {
    let lost = spool.status().await.unwrap().lost_readings;
    let copy = tempfile::tempdir().unwrap();
    for name in ["spool.db", "spool.db-wal"] {
        std::fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
    }
    let file = fixture::sqlite(copy.path());
    let sum = "SELECT sum(count) FROM ledger_tallies";
    assert_eq!(
        file.query_row(sum, [], |row| row.get::<_, u64>(0)).unwrap(),
        lost
    );
    file.query_row("SELECT count(*) FROM ledger", [], |row| row.get(0))
        .unwrap()
}

fn tally(sensor_number: u32, run_id: [u8; 16], first: u64, last: u64) -> Tally {
    Tally {
        sensor_number,
        run_id,
        first,
        last,
        count: last - first + 1,
    }
}

fn loss(lane: Lane, first: u64, last: u64) -> Loss {
    Loss {
        lane,
        reason: LossReason::Disk,
        tallies: vec![tally(1, RUN, first, last)],
        from_ms: 10,
        until_ms: 20,
        batches: vec![],
    }
}
