//! Files that are not what they should be.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod fixture;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fixture::{ROOMY, TIGHT, batch, close, epoch, fill, folder_bytes, held, lane, sqlite};
use spool::{Spool, SpoolError};
use wire::Class;
use wire::batch::LossReason;

#[tokio::test]
async fn the_database_of_another_application_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.db");
    let foreign = rusqlite::Connection::open(&path).unwrap();
    foreign
        .execute_batch("CREATE TABLE photos (name TEXT); INSERT INTO photos VALUES ('cat');")
        .unwrap();
    drop(foreign);
    let before = fs::read(&path).unwrap();

    let error = Spool::open(folder.path(), ROOMY).unwrap_err();

    assert!(matches!(error, SpoolError::NotOurs { .. }), "{error:?}");
    assert!(error.to_string().contains("spool.db"), "it names the file");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    close(Spool::open(folder.path(), ROOMY).unwrap(), folder.path());
    sqlite(folder.path())
        .execute_batch("PRAGMA user_version = 3")
        .unwrap();
    let before = fs::read(folder.path().join("spool.db")).unwrap();

    let error = Spool::open(folder.path(), ROOMY).unwrap_err();

    assert!(
        matches!(error, SpoolError::Newer { found: 3, .. }),
        "{error:?}"
    );
    assert_eq!(fs::read(folder.path().join("spool.db")).unwrap(), before);
}

#[tokio::test]
async fn a_file_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _spool = Spool::open(folder.path(), ROOMY).unwrap();

    let error = Spool::open(folder.path(), ROOMY).unwrap_err();

    assert!(matches!(error, SpoolError::InUse { .. }), "{error:?}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();

    let error = Spool::open(&file.join("spool"), ROOMY).unwrap_err();

    assert!(matches!(error, SpoolError::Disk { .. }), "{error:?}");
    assert!(error.to_string().contains(&file.display().to_string()));
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_its_services_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let critical = lane(1, Class::Critical);
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let chain_id = spool.chain_id();
    fill(&spool, critical, 0, 3, 1000).await;
    close(spool, folder.path());
    overwrite(&folder.path().join("spool.db"), 0, &[0xAA; 2048]);

    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    fill(&spool, critical, 0, 1, 1000).await;
    spool
        .open_epoch(epoch(lane(1, Class::Bulk), 0))
        .await
        .unwrap();
    spool
        .open_epoch(epoch(lane(2, Class::Bulk), 0))
        .await
        .unwrap();

    assert_ne!(spool.chain_id(), chain_id);
    assert_eq!(damaged(folder.path()), ["spool.db.damaged-1"]);
    for service in [1, 2] {
        let entries = spool.ledger_open([service; 32]).await.unwrap();
        assert_eq!(entries.len(), 1, "once for each service");
        assert_eq!(entries[0].reason, LossReason::Damaged);
        assert_eq!(entries[0].chain_id, spool.chain_id());
        assert_eq!(entries[0].tallies, [], "nobody knows what it held");
        assert_eq!(entries[0].from_ms, 0);
        assert!(0 < entries[0].until_ms);
    }
}

#[tokio::test]
async fn damage_found_later_ends_this_spool_and_the_next_start_makes_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let lane = lane(1, Class::Normal);
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let chain_id = spool.chain_id();
    fill(&spool, lane, 0, 50, 3000).await;
    close(spool, folder.path());
    let path = folder.path().join("spool.db");
    let pages = fs::metadata(&path).unwrap().len() / 1024;
    // Everything behind the schema and the small tables.
    overwrite(&path, 24 * 1024, &vec![0xAA; (pages as usize - 24) * 1024]);

    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    assert_eq!(spool.chain_id(), chain_id, "opening does not look that far");
    let found = spool.read(lane, None, 1 << 20).await.unwrap_err();
    let after = spool.append(batch(lane, 0, 50, 100)).await.unwrap_err();
    drop(spool);
    let spool = Spool::open(folder.path(), ROOMY).unwrap();

    assert!(matches!(found, SpoolError::Corrupt { .. }), "{found:?}");
    assert!(matches!(after, SpoolError::Corrupt { .. }), "{after:?}");
    assert!(found.to_string().contains("spool.db"));
    assert!(found.advice().contains("restart"));
    assert_ne!(spool.chain_id(), chain_id);
    assert_eq!(damaged(folder.path()).len(), 1);
    fill(&spool, lane, 0, 1, 100).await;
    let entries = spool.ledger_open(lane.service).await.unwrap();
    assert_eq!(entries[0].reason, LossReason::Damaged);
}

#[tokio::test]
async fn only_the_last_damaged_file_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        close(Spool::open(folder.path(), ROOMY).unwrap(), folder.path());
        overwrite(&folder.path().join("spool.db"), 0, &[0xAA; 100]);
    }

    drop(Spool::open(folder.path(), ROOMY).unwrap());

    assert_eq!(damaged(folder.path()), ["spool.db.damaged-3"]);
}

#[tokio::test]
async fn a_damaged_file_counts_and_goes_before_any_batch() {
    let folder = tempfile::tempdir().unwrap();
    let lane = lane(1, Class::Bulk);
    let spool = Spool::open(folder.path(), TIGHT).unwrap();
    fill(&spool, lane, 0, 10, 100_000).await;
    close(spool, folder.path());
    overwrite(&folder.path().join("spool.db"), 0, &[0xAA; 100]);

    let spool = Spool::open(folder.path(), TIGHT).unwrap();
    spool.open_epoch(epoch(lane, 0)).await.unwrap();
    assert_eq!(damaged(folder.path()).len(), 1);
    let mut number = 0;
    while !damaged(folder.path()).is_empty() {
        spool.append(batch(lane, 0, number, 50_000)).await.unwrap();
        assert!(folder_bytes(folder.path()) <= TIGHT.max_bytes);
        number += 1;
    }

    let held = held(&spool, lane).await;
    assert_eq!(held.len(), number as usize, "no batch had to go");
}

#[tokio::test]
async fn an_older_copy_of_the_file_opens_under_the_same_chain_id() {
    let folder = tempfile::tempdir().unwrap();
    let lane = lane(1, Class::Normal);
    let path = folder.path().join("spool.db");
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    let chain_id = spool.chain_id();
    fill(&spool, lane, 0, 2, 1000).await;
    close(spool, folder.path());
    let older = fs::read(&path).unwrap();
    let spool = Spool::open(folder.path(), ROOMY).unwrap();
    fill(&spool, lane, 1, 2, 1000).await;
    close(spool, folder.path());
    fs::write(&path, older).unwrap();

    let spool = Spool::open(folder.path(), ROOMY).unwrap();

    assert_eq!(spool.chain_id(), chain_id);
    assert_eq!(held(&spool, lane).await, [(0, 0), (0, 1)]);
    let newest = spool.lane(lane).await.unwrap().newest.unwrap();
    assert_eq!(newest.index, 0, "by this the service tells");
}

#[tokio::test]
async fn a_log_without_its_database_is_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("spool.db-wal"), [0xAA; 5000]).unwrap();

    let spool = Spool::open(folder.path(), ROOMY).unwrap();

    fill(&spool, lane(1, Class::Normal), 0, 1, 100).await;
}

fn overwrite(path: &Path, offset: u64, with: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(with, offset).unwrap();
}

fn damaged(folder: &Path) -> Vec<String> {
    let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| name(entry.unwrap().path()))
        .filter(|name| name.contains("damaged"))
        .collect()
}
