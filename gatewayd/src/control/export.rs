//! Sealed batches for a file that somebody carries to the service (protocol.md 3.5).

use std::collections::VecDeque;

use axum::{
    Json,
    body::Body,
    extract::{ConnectInfo, State, rejection::JsonRejection},
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use channel::{Fingerprint, UnsignedHeader};
use data_encoding::HEXLOWER;
use spool::{Lane, Spool, SpoolError, StoredBatch, StoredHeader};
use wire::{
    Class,
    carried::{Label, Piece},
};

use super::{Caller, Control, Refusal, own_uid, refuse, unavailable};
use crate::{
    report::{EXPORT_BYTES_MAX, ExportRequest, ExportedAnswer, ExportedRequest},
    service::Service,
    upload::is_intact,
};

/// `POST /v1/spool/export`: a file of one service's batches, oldest first. They stay in the spool.
pub(super) async fn export(
    State(control): State<Control>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Result<Json<ExportRequest>, JsonRejection>,
) -> Result<Response, Refusal> {
    caller.check(own_uid())?;
    let Json(request) = request?;
    let service = choose(&control, request.service.as_deref())?;
    let gateway = gateway(&control)?;
    let disk = |error: &SpoolError| unavailable(WHAT, error, error.advice());
    let (export, bytes) = Export::begin(&control.spool, service, gateway, request.new)
        .await
        .map_err(|error| disk(&error))?;
    let unsigned = unsigned(&control.spool, &service)
        .await
        .map_err(|error| disk(&error))?;
    let pieces = futures::stream::try_unfold(export, async |mut export: Export| {
        let portion = export.next().await?;
        Ok::<_, SpoolError>(portion.map(|portion| (portion, export)))
    });
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (BYTES_HEADER, bytes.to_string()),
        (UNSIGNED_HEADER, unsigned.to_string()),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// `POST /v1/spool/exported`: what a file has is on its medium.
pub(super) async fn exported(
    State(control): State<Control>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Result<Json<ExportedRequest>, JsonRejection>,
) -> Result<Json<ExportedAnswer>, Refusal> {
    caller.check(own_uid())?;
    let Json(request) = request?;
    for (epoch, next) in &request.epochs {
        let decoded = HEXLOWER.decode(epoch.as_bytes()).ok();
        let Some(epoch_id) = decoded.and_then(|bytes| bytes.try_into().ok()) else {
            return Err(refuse(
                StatusCode::BAD_REQUEST,
                "the request is not understood",
                "an epoch is 64 hexadecimal digits",
                super::SAME_VERSION,
            ));
        };
        let noted = control.spool.note_exported(epoch_id, *next).await;
        noted.map_err(|error| unavailable(WHAT, &error, error.advice()))?;
    }
    Ok(Json(ExportedAnswer {
        schema: "exported/1".into(),
    }))
}

/// The service whose batches are meant, by its key.
fn choose(control: &Control, name: Option<&str>) -> Result<Fingerprint, Refusal> {
    let known = |service: &Service| Some((service.name.clone(), service.peer()?.key));
    let known: Vec<_> = control
        .services
        .iter()
        .filter_map(|service| known(service))
        .collect();
    let names: Vec<_> = known.iter().map(|(name, _)| name.as_str()).collect();
    match (name, known.as_slice()) {
        (Some(name), _) => known
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, key)| *key)
            .ok_or_else(|| {
                let why = format!("{name:?} is no service that has a key");
                bad(&why, &format!("name one of: {}", names.join(", ")))
            }),
        (None, [(_, key)]) => Ok(*key),
        (None, []) => Err(bad(
            "no service has a key yet, so nothing is sealed",
            "gatewayctl enroll -",
        )),
        (None, _) => Err(bad(
            "there are several services, and a file is for one",
            &format!("--service with one of: {}", names.join(", ")),
        )),
    }
}

fn bad(why: &str, advice: &str) -> Refusal {
    refuse(StatusCode::BAD_REQUEST, WHAT, why, advice)
}

/// Who this gateway is, or was before its TPM fell silent.
fn gateway(control: &Control) -> Result<[u8; 32], Refusal> {
    if let Some(identity) = control.identity.borrow().as_ref() {
        return Ok(*identity.fingerprint().bytes());
    }
    let kept = control.enrolment.read().ok();
    let named = kept.and_then(|content| content.gateway?.parse::<Fingerprint>().ok());
    named
        .map(|named| *named.bytes())
        .ok_or_else(|| bad("the gateway has no identity yet", "gatewayctl init"))
}

/// Epochs of a service that wait for the TPM and cannot go, at most 64.
async fn unsigned(spool: &Spool, service: &Fingerprint) -> Result<usize, SpoolError> {
    let waiting = spool.unsigned_headers().await?;
    let of_service = waiting.iter().filter(|(_, payload)| {
        UnsignedHeader::from_payload(payload).is_ok_and(|header| header.terms().service == *service)
    });
    Ok(of_service.count())
}

/// An export under way, lane by lane.
struct Export {
    spool: Spool,
    label: Option<Label>,
    /// With how many batches each had at the begin: what comes meanwhile does not keep it going.
    lanes: VecDeque<(Lane, u64)>,
    after: Option<([u8; 32], u32)>,
    /// The epoch that the file is at, and from which number on it is wanted; `None`: not at all.
    epoch: Option<([u8; 32], Option<u32>)>,
    only_new: bool,
    pieces: u64,
    bytes: u64,
    ended: bool,
}

impl Export {
    /// Begins one; returns with it about how many bytes it will have.
    async fn begin(
        spool: &Spool,
        service: Fingerprint,
        gateway: [u8; 32],
        only_new: bool,
    ) -> Result<(Self, u64), SpoolError> {
        let mut bytes = 0;
        let mut lanes = VecDeque::new();
        for &class in Class::ALL {
            let lane = Lane {
                service: *service.bytes(),
                class,
            };
            let state = spool.lane(lane).await?;
            bytes += state.bytes;
            lanes.push_back((lane, state.batches));
        }
        let label = Label {
            gateway,
            service: *service.bytes(),
        };
        let export = Self {
            spool: spool.clone(),
            label: Some(label),
            lanes,
            after: None,
            epoch: None,
            only_new,
            pieces: 0,
            bytes: 0,
            ended: false,
        };
        Ok((export, bytes))
    }

    /// The next portion of the file; `None` behind its end.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, SpoolError> {
        if self.ended {
            return Ok(None);
        }
        let mut portion = Vec::new();
        if let Some(label) = self.label.take() {
            self.add(&mut portion, &Piece::Label(label));
        }
        while portion.is_empty() {
            let Some((lane, left)) = self.lanes.front().copied() else {
                let pieces = self.pieces;
                portion.extend(Piece::End { pieces }.encode());
                self.ended = true;
                break;
            };
            let batches = match left {
                0 => Vec::new(),
                _ => self.spool.read_all(lane, self.after, PORTION_BYTES).await?,
            };
            if batches.is_empty() || EXPORT_BYTES_MAX <= self.bytes {
                self.lanes.pop_front();
                self.after = None;
                continue;
            }
            let mut left = left;
            for batch in batches
                .into_iter()
                .take(usize::try_from(left).unwrap_or(usize::MAX))
            {
                left -= 1;
                self.after = Some((batch.epoch_id, batch.number));
                self.add_batch(&mut portion, batch).await?;
            }
            if let Some(front) = self.lanes.front_mut() {
                front.1 = left;
            }
        }
        Ok(Some(portion))
    }

    async fn add_batch(
        &mut self,
        portion: &mut Vec<u8>,
        batch: StoredBatch,
    ) -> Result<(), SpoolError> {
        let from = match self.epoch {
            Some((epoch_id, from)) if epoch_id == batch.epoch_id => from,
            Some(_) | None => {
                let from = self.begin_epoch(portion, batch.epoch_id).await?;
                self.epoch = Some((batch.epoch_id, from));
                from
            }
        };
        if from.is_none_or(|from| batch.number < from) {
            return Ok(());
        }
        if !is_intact(&batch) {
            tracing::error!(
                number = batch.number,
                "a batch is damaged on the disk: not exported"
            );
            return Ok(());
        }
        self.add(portion, &Piece::Batch(batch.bytes));
        Ok(())
    }

    /// Adds an epoch's header if it is signed; returns from which number on its batches follow.
    async fn begin_epoch(
        &mut self,
        portion: &mut Vec<u8>,
        epoch_id: [u8; 32],
    ) -> Result<Option<u32>, SpoolError> {
        let Some(StoredHeader::Signed(header)) = self.spool.header(epoch_id).await? else {
            return Ok(None);
        };
        self.add(portion, &Piece::Header(header));
        if self.only_new {
            return self.spool.exported(epoch_id).await.map(Some);
        }
        Ok(Some(0))
    }

    fn add(&mut self, portion: &mut Vec<u8>, piece: &Piece) {
        let before = portion.len();
        portion.extend(piece.encode());
        self.bytes += (portion.len() - before) as u64;
        self.pieces += 1;
    }
}

const WHAT: &str = "cannot export";

/// About how many bytes the file will have.
const BYTES_HEADER: HeaderName = HeaderName::from_static(crate::report::EXPORT_BYTES_HEADER);

/// How many epochs are left out, as the TPM has not signed for them.
const UNSIGNED_HEADER: HeaderName = HeaderName::from_static(crate::report::EXPORT_UNSIGNED_HEADER);

/// Sealed bytes in memory at once, unless one batch has more.
const PORTION_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests;
