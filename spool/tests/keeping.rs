//! What was appended is there, in order, until it is acknowledged.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod fixture;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use fixture::{ROOMY, batch, close, content, epoch, epoch_id, fill, held, lane};
use spool::{
    Acked, BATCH_BYTES_MAX, LaneState, NewBatch, Newest, Spool, SpoolError, SpoolState,
    StoredHeader,
};
use wire::Class;

#[tokio::test]
async fn only_the_owner_may_look_into_folder_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/spool");

    let spool = Spool::open(&path, ROOMY).unwrap();
    fill(&spool, lane(1, Class::Normal), 0, 1, 10).await;

    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path.clone()), 0o700);
    assert_eq!(mode(path.join("spool.db")), 0o600);
    assert_eq!(mode(path.join("spool.db-wal")), 0o600);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 2, "no third file");

    close(spool, &path);
    fs::set_permissions(path.join("spool.db"), fs::Permissions::from_mode(0o644)).unwrap();
    let _copied_back = Spool::open(&path, ROOMY).unwrap();
    assert_eq!(mode(path.join("spool.db")), 0o600);
    assert_eq!(mode(path.join("spool.db-wal")), 0o600);
}

#[tokio::test]
async fn everything_is_there_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let lane = lane(1, Class::Normal);
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let chain_id = spool.chain_id();
    fill(&spool, lane, 0, 3, 5000).await;
    spool
        .close_epoch(lane, epoch_id(lane, 0), true)
        .await
        .unwrap();
    spool.put("run:unclean", vec![1, 2]).await.unwrap();
    let before = (
        spool.lane(lane).await.unwrap(),
        spool.status().await.unwrap().lanes,
    );
    close(spool, folder.path());

    let spool = Spool::open(folder.path(), ROOMY).unwrap();

    assert_eq!(spool.chain_id(), chain_id);
    assert_eq!(held(&spool, lane).await, [(0, 0), (0, 1), (0, 2)]);
    assert_eq!(spool.get("run:unclean").await.unwrap(), Some(vec![1, 2]));
    assert_eq!(spool.get("run:other").await.unwrap(), None);
    let after = (
        spool.lane(lane).await.unwrap(),
        spool.status().await.unwrap().lanes,
    );
    assert_eq!(after, before);
    assert_eq!(
        after.0,
        LaneState {
            newest: Some(Newest {
                epoch_id: epoch_id(lane, 0),
                index: 0,
                count: 3,
                head: fixture::chain(0, 2),
                clean: true
            }),
            oldest: Some((epoch_id(lane, 0), 0)),
            batches: 3,
            bytes: after.0.bytes,
        }
    );
}

#[tokio::test]
async fn every_new_file_has_a_chain_id_of_its_own() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());

    let ids = [&one, &two].map(|folder| Spool::open(folder.path(), ROOMY).unwrap().chain_id());

    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_lane_is_read_oldest_first_across_epochs_and_in_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let (ours, other) = (lane(1, Class::Normal), lane(2, Class::Normal));
    fill(&spool, ours, 0, 3, 1000).await;
    fill(&spool, other, 0, 2, 1000).await;
    fill(&spool, ours, 1, 2, 1000).await;

    let first = spool.read(ours, None, 2500).await.unwrap();
    let rest = spool
        .read(ours, Some((epoch_id(ours, 0), 1)), 100_000)
        .await
        .unwrap();
    let one = spool.read(ours, None, 1).await.unwrap();

    let names = |batches: &[spool::StoredBatch]| -> Vec<_> {
        batches
            .iter()
            .map(|batch| (batch.epoch_id, batch.number))
            .collect()
    };
    let id = |index| epoch_id(ours, index);
    assert_eq!(names(&first), [(id(0), 0), (id(0), 1)]);
    assert_eq!(names(&rest), [(id(0), 2), (id(1), 0), (id(1), 1)]);
    assert_eq!(names(&one), [(id(0), 0)], "one is returned, however large");
    assert_eq!(held(&spool, other).await, [(0, 0), (0, 1)]);
}

#[tokio::test]
async fn an_ack_forgets_what_is_below_it_in_its_epoch_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let ours = lane(1, Class::Normal);
    fill(&spool, ours, 0, 2, 100).await;
    fill(&spool, ours, 1, 300, 100).await;

    let unknown = spool.ack(ours, [0xEE; 32], 65_536).await.unwrap();
    let foreign = spool
        .ack(lane(2, Class::Normal), epoch_id(ours, 1), 300)
        .await
        .unwrap();
    let acked = spool.ack(ours, epoch_id(ours, 1), 299).await.unwrap();
    let again = spool.ack(ours, epoch_id(ours, 1), 299).await.unwrap();

    assert_eq!((unknown, foreign, again), Default::default());
    assert_eq!(
        acked,
        Acked {
            batches: 299,
            readings: 2990
        }
    );
    assert_eq!(held(&spool, ours).await, [(0, 0), (0, 1), (1, 299)]);
    let status = spool.status().await.unwrap();
    assert_eq!(
        (status.appended_readings, status.acked_readings),
        (3020, 2990)
    );
    assert_eq!((status.lanes[0].batches, status.lanes[0].readings), (3, 30));
}

#[tokio::test]
async fn headers_of_acknowledged_epochs_are_forgotten_but_for_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let lane = lane(1, Class::Normal);
    fill(&spool, lane, 0, 2, 100).await;
    fill(&spool, lane, 1, 2, 100).await;

    spool.ack(lane, epoch_id(lane, 0), 2).await.unwrap();
    spool.ack(lane, epoch_id(lane, 1), 2).await.unwrap();

    assert_eq!(spool.header(epoch_id(lane, 0)).await.unwrap(), None);
    assert_eq!(
        spool.header(epoch_id(lane, 1)).await.unwrap(),
        Some(StoredHeader::Unsigned(b"header 1".to_vec()))
    );
    let state = spool.lane(lane).await.unwrap();
    assert_eq!(state.oldest, None);
    let newest = state.newest.unwrap();
    assert_eq!((newest.index, newest.count), (1, 2));
    assert_eq!(newest.head, fixture::chain(1, 1));

    spool.open_epoch(epoch(lane, 2)).await.unwrap();
    assert_eq!(spool.header(epoch_id(lane, 1)).await.unwrap(), None);
    let newest = spool.lane(lane).await.unwrap().newest.unwrap();
    assert_eq!((newest.count, newest.head), (0, epoch_id(lane, 2)));
}

#[tokio::test]
async fn a_header_waits_until_it_is_signed_and_keeps_its_first_signature() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let lane = lane(1, Class::Critical);
    spool.open_epoch(epoch(lane, 0)).await.unwrap();
    let id = epoch_id(lane, 0);
    let mut changed = spool.changed();
    changed.mark_unchanged();

    let waiting = spool.unsigned_headers().await.unwrap();
    spool.sign_header(id, b"signed".to_vec()).await.unwrap();
    spool.sign_header(id, b"again".to_vec()).await.unwrap();
    spool
        .sign_header([0; 32], b"unknown".to_vec())
        .await
        .unwrap();

    assert_eq!(waiting, [(id, b"header 0".to_vec())]);
    assert_eq!(
        spool.header(id).await.unwrap(),
        Some(StoredHeader::Signed(b"signed".to_vec()))
    );
    assert_eq!(spool.unsigned_headers().await.unwrap(), []);
    assert!(changed.has_changed().unwrap());
    spool.open_epoch(epoch(lane, 0)).await.unwrap();
    assert_eq!(
        spool.header(id).await.unwrap(),
        Some(StoredHeader::Signed(b"signed".to_vec())),
        "opening it again changes nothing"
    );
}

#[tokio::test]
async fn a_batch_is_immutable() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let lane = lane(1, Class::Normal);
    fill(&spool, lane, 0, 2, 100).await;
    let other_bytes = NewBatch {
        bytes: content(9, 100),
        ..batch(lane, 0, 1, 100)
    };

    spool.append(batch(lane, 0, 0, 100)).await.unwrap();
    spool.append(batch(lane, 0, 1, 100)).await.unwrap();
    let altered = spool.append(other_bytes).await;

    assert!(matches!(altered, Err(SpoolError::Altered)), "{altered:?}");
    assert_eq!(held(&spool, lane).await, [(0, 0), (0, 1)]);
    assert_eq!(spool.status().await.unwrap().appended_readings, 20);

    spool.ack(lane, epoch_id(lane, 0), 2).await.unwrap();
    spool.append(batch(lane, 0, 1, 100)).await.unwrap();
    let passed = spool.append(batch(lane, 0, 0, 100)).await;
    assert!(matches!(passed, Err(SpoolError::Passed)), "{passed:?}");
    assert_eq!(
        held(&spool, lane).await,
        [],
        "what was acked stays forgotten"
    );
}

#[tokio::test]
async fn what_the_caller_gets_wrong_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let ours = lane(1, Class::Normal);
    fill(&spool, ours, 0, 1, 100).await;
    fill(&spool, ours, 1, 1, 100).await;
    let before = spool.status().await.unwrap();
    let mut backwards = batch(ours, 1, 1, 100);
    backwards.tallies[0].last = 0;
    let mut elsewhere = batch(ours, 1, 1, 100);
    elsewhere.lane = lane(2, Class::Normal);

    let refused = [
        spool.append(batch(ours, 0, 1, 100)).await,
        spool.append(elsewhere).await,
        spool.append(backwards).await,
        spool.append(batch(ours, 1, 65_536, 100)).await,
        spool.append(batch(ours, 1, 1, BATCH_BYTES_MAX + 1)).await,
    ];
    let reopened = spool.open_epoch(epoch(ours, 0)).await;

    assert!(matches!(refused[0], Err(SpoolError::NotNewest)));
    assert!(matches!(refused[1], Err(SpoolError::NotNewest)));
    assert!(matches!(refused[2], Err(SpoolError::Tally)));
    assert!(matches!(refused[3], Err(SpoolError::TooMany { .. })));
    assert!(matches!(refused[4], Err(SpoolError::Oversized { .. })));
    assert!(
        reopened.is_ok(),
        "an epoch that is here may be opened again"
    );
    let mut older = epoch(ours, 0);
    older.epoch_id = [9; 32];
    let older = spool.open_epoch(older).await;
    assert!(matches!(older, Err(SpoolError::Passed)));
    assert_eq!(spool.status().await.unwrap(), before);
}

#[tokio::test]
async fn an_epoch_set_aside_is_kept_and_not_sent() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let lane = lane(1, Class::Normal);
    fill(&spool, lane, 0, 2, 100).await;
    fill(&spool, lane, 1, 1, 100).await;

    assert_eq!(spool.unsigned_headers().await.unwrap().len(), 2);
    spool.set_aside(epoch_id(lane, 0)).await.unwrap();

    // Nobody signs it any more, so it stands in no other epoch's way.
    assert_eq!(spool.unsigned_headers().await.unwrap().len(), 1);
    assert_eq!(held(&spool, lane).await, [(1, 0)]);
    let state = spool.lane(lane).await.unwrap();
    assert_eq!(state.oldest, Some((epoch_id(lane, 1), 0)));
    assert_eq!(state.batches, 3);
}

#[tokio::test]
async fn what_left_by_hand_is_known_until_it_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let lane = lane(1, Class::Normal);
    fill(&spool, lane, 0, 3, 10).await;
    let id = epoch_id(lane, 0);
    assert_eq!(spool.exported(id).await.unwrap(), 0);
    spool.note_exported(id, 2).await.unwrap();
    spool.note_exported(id, 1).await.unwrap();
    spool.note_exported([9; 32], 1).await.unwrap();
    close(spool, folder.path());

    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    assert_eq!(spool.exported(id).await.unwrap(), 2);
    assert_eq!(spool.exported([9; 32]).await.unwrap(), 0);
    assert_eq!(held(&spool, lane).await.len(), 3, "it stays");
}

#[tokio::test]
async fn what_is_set_aside_can_still_be_carried_by_hand() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let lane = lane(1, Class::Normal);
    fill(&spool, lane, 0, 2, 10).await;
    fill(&spool, lane, 1, 1, 10).await;
    spool.set_aside(epoch_id(lane, 0)).await.unwrap();

    let numbers = async |after| -> Vec<u32> {
        let all = spool.read_all(lane, after, usize::MAX).await.unwrap();
        all.iter().map(|batch| batch.number).collect()
    };
    assert_eq!(numbers(None).await, [0, 1, 0]);
    assert_eq!(numbers(Some((epoch_id(lane, 0), 0))).await, [1, 0]);
}

#[tokio::test]
async fn a_file_of_the_version_before_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let lane = lane(1, Class::Normal);
    fill(&spool, lane, 0, 2, 10).await;
    let chain_id = spool.chain_id();
    close(spool, folder.path());
    let file = rusqlite::Connection::open(folder.path().join("spool.db")).unwrap();
    file.execute_batch("ALTER TABLE epochs DROP COLUMN exported; PRAGMA user_version = 1")
        .unwrap();
    drop(file);

    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    assert_eq!(spool.chain_id(), chain_id);
    assert_eq!(held(&spool, lane).await.len(), 2);
    spool.note_exported(epoch_id(lane, 0), 1).await.unwrap();
    assert_eq!(spool.exported(epoch_id(lane, 0)).await.unwrap(), 1);
}

#[tokio::test]
async fn an_append_wakes_who_waits_for_a_change() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let lane = lane(1, Class::Normal);
    spool.open_epoch(epoch(lane, 0)).await.unwrap();
    let mut changed = spool.changed();

    let (woken, appended) = tokio::join!(changed.changed(), spool.append(batch(lane, 0, 0, 10)));

    woken.unwrap();
    appended.unwrap();
}

#[tokio::test]
async fn the_status_uses_the_words_of_the_manual() {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    fill(&spool, lane(1, Class::Bulk), 0, 2, 100).await;

    let status = spool.status().await.unwrap();

    assert_eq!(status.state.to_string(), "disk");
    assert_eq!(SpoolState::Memory.to_string(), "memory");
    assert_eq!(status.max_bytes, ROOMY.max_bytes);
    assert!((1024..ROOMY.max_bytes).contains(&status.bytes));
    assert_eq!(status.lanes[0].lane, lane(1, Class::Bulk));
    assert_eq!(status.lanes[0].oldest_ms, Some(0));
}
