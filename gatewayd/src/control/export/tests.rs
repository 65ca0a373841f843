//! What an export has, and what an ack may then cover.

use channel::{Epoch, SealedBatch};
use spool::NewBatch;
use tempfile::TempDir;
use wire::carried::Pieces;

use super::*;
use crate::fixture::{Keys, new_batch, open_spool};

#[tokio::test]
async fn an_export_has_every_signed_epoch_oldest_first_and_forgets_nothing() {
    let site = Site::new();
    let mut normal = site.open(Class::Normal, true).await;
    let mut bulk = site.open(Class::Bulk, true).await;
    for _ in 0..3 {
        site.append(&mut normal, Class::Normal, 30_000).await;
    }
    site.append(&mut bulk, Class::Bulk, 10).await;
    let mut next = site.open(Class::Normal, true).await;
    site.append(&mut next, Class::Normal, 10).await;
    // Its service could not open it once; perhaps it can by hand.
    site.spool.set_aside(normal.id()).await.unwrap();

    let pieces = site.export(false).await;

    assert_eq!(
        pieces[0],
        Piece::Label(Label {
            gateway: *site.keys.gateway().bytes(),
            service: *site.keys.pin().bytes()
        })
    );
    let expected = [
        (normal.id(), vec![0, 1, 2]),
        (next.id(), vec![0]),
        (bulk.id(), vec![0]),
    ];
    assert_eq!(batches(&pieces), expected);
    assert_eq!(pieces.last(), Some(&Piece::End { pieces: 9 }));
    let held = site.spool.status().await.unwrap();
    assert_eq!(held.lanes.iter().map(|lane| lane.batches).sum::<u64>(), 5);
}

#[tokio::test]
async fn what_the_tpm_has_not_signed_and_what_the_disk_has_damaged_stays_out() {
    let site = Site::new();
    let mut unsigned = site.open(Class::Normal, false).await;
    site.append(&mut unsigned, Class::Normal, 10).await;
    let mut signed = site.open(Class::Normal, true).await;
    let sealed = signed.seal(b"a").unwrap();
    let mut damaged = site.batch(&sealed, Class::Normal);
    *damaged.bytes.last_mut().unwrap() ^= 1;
    site.spool.append(damaged).await.unwrap();
    site.append(&mut signed, Class::Normal, 10).await;

    assert_eq!(batches(&site.export(false).await), [(signed.id(), vec![1])]);
    let waiting = super::unsigned(&site.spool, &site.keys.pin())
        .await
        .unwrap();
    assert_eq!(waiting, 1);
    let other = Keys::new().pin();
    assert_eq!(super::unsigned(&site.spool, &other).await.unwrap(), 0);
}

#[tokio::test]
async fn only_what_is_new_goes_if_that_is_asked_for() {
    let site = Site::new();
    let mut epoch = site.open(Class::Normal, true).await;
    site.append(&mut epoch, Class::Normal, 10).await;
    site.append(&mut epoch, Class::Normal, 10).await;
    // Until the file is on its medium, nothing was exported.
    assert_eq!(
        batches(&site.export(true).await),
        [(epoch.id(), vec![0, 1])]
    );
    assert_eq!(
        batches(&site.export(true).await),
        [(epoch.id(), vec![0, 1])]
    );
    site.spool.note_exported(epoch.id(), 2).await.unwrap();

    site.append(&mut epoch, Class::Normal, 10).await;

    assert_eq!(batches(&site.export(true).await), [(epoch.id(), vec![2])]);
    assert_eq!(
        batches(&site.export(false).await),
        [(epoch.id(), vec![0, 1, 2])]
    );
}

#[tokio::test]
async fn what_is_appended_meanwhile_does_not_keep_an_export_going() {
    let site = Site::new();
    let mut epoch = site.open(Class::Normal, true).await;
    for _ in 0..3 {
        site.append(&mut epoch, Class::Normal, 40_000).await;
    }
    let (mut export, bytes) = site.begin(false).await;
    assert!(120_000 < bytes);
    let mut file = Vec::new();
    while let Some(portion) = export.next().await.unwrap() {
        file.extend(portion);
        site.append(&mut epoch, Class::Normal, 40_000).await;
    }
    assert_eq!(batches(&pieces(&file)), [(epoch.id(), vec![0, 1, 2])]);
}

/// Epochs and the numbers of their batches, in the order of the file.
fn batches(pieces: &[Piece]) -> Vec<([u8; 32], Vec<u32>)> {
    let mut epochs: Vec<([u8; 32], Vec<u32>)> = Vec::new();
    for piece in pieces {
        if let Piece::Batch(bytes) = piece {
            let sealed = SealedBatch::decode(bytes).unwrap();
            match epochs.last_mut() {
                Some((epoch, numbers)) if *epoch == sealed.epoch_id => numbers.push(sealed.number),
                Some(_) | None => epochs.push((sealed.epoch_id, vec![sealed.number])),
            }
        }
    }
    epochs
}

fn pieces(file: &[u8]) -> Vec<Piece> {
    let mut pieces = Pieces::default();
    pieces.push(file);
    pieces.finish();
    let read: Result<Vec<_>, _> = std::iter::from_fn(|| pieces.poll()).collect();
    read.unwrap()
}

struct Site {
    keys: Keys,
    spool: Spool,
    _folder: TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            keys: Keys::new(),
            spool: open_spool(folder.path()),
            _folder: folder,
        }
    }

    async fn open(&self, class: Class, signed: bool) -> Epoch {
        self.keys.open_epoch(&self.spool, class, signed).await
    }

    fn batch(&self, sealed: &SealedBatch, class: Class) -> NewBatch {
        new_batch(self.keys.lane(class), sealed, Vec::new())
    }

    async fn append(&self, epoch: &mut Epoch, class: Class, bytes: usize) {
        let sealed = epoch.seal(&vec![0; bytes]).unwrap();
        self.spool.append(self.batch(&sealed, class)).await.unwrap();
    }

    async fn begin(&self, only_new: bool) -> (Export, u64) {
        let gateway = *self.keys.gateway().bytes();
        let begun = Export::begin(&self.spool, self.keys.pin(), gateway, only_new).await;
        begun.unwrap()
    }

    async fn export(&self, only_new: bool) -> Vec<Piece> {
        let (mut export, _) = self.begin(only_new).await;
        let mut file = Vec::new();
        while let Some(portion) = export.next().await.unwrap() {
            file.extend(portion);
        }
        pieces(&file)
    }
}
