//! What an open session asks of its owner while its keys are renewed (protocol.md 2.5).

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll};

use channel::{Admission, Event, KeyError, SharedSecret, Statement, StaticKey};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::control::Control;
use crate::pump::{Pump, now};
use crate::{KeepStatement, LinkError, PeerHello, Registry};

/// The owner's side of a link.
pub(crate) struct Owner<'a> {
    pub(crate) key: &'a dyn StaticKey,
    pub(crate) part: Part<'a>,
}

/// What only one of the sides has.
pub(crate) enum Part<'a> {
    Gateway(&'a dyn KeepStatement),
    Service(&'a dyn Registry, PeerHello),
}

/// The owner's work for a renewal; of each kind the last counts, since the session asks anew only
/// when it has given up on the one before.
pub(crate) struct Renewals<'a> {
    owner: Owner<'a>,
    secret: Option<BoxFuture<'a, Result<SharedSecret, KeyError>>>,
    kept: Option<BoxFuture<'a, io::Result<()>>>,
    admitted: Option<BoxFuture<'a, Admission>>,
}

impl<'a> Renewals<'a> {
    pub(crate) fn new(owner: Owner<'a>) -> Self {
        Self {
            owner,
            secret: None,
            kept: None,
            admitted: None,
        }
    }

    /// Begins what the session asks for, and hands it what is done. Tells whether anything was.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        pump: &mut Pump,
        control: &Control,
    ) -> Result<bool, LinkError> {
        let mut asked: VecDeque<Event> = pump.take_asked();
        let mut moved = false;
        while let Some(event) = asked.pop_front() {
            moved = true;
            self.begin(event);
        }
        if let Some(secret) = poll_slot(&mut self.secret, cx) {
            moved = true;
            // Late or not: the session has then given up, and refuses the call without harm.
            match pump.session().handle_shared_secret(now(), secret) {
                Err(channel::SessionError::LocalOutOfTurn) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match poll_slot(&mut self.kept, cx) {
            Some(Ok(())) => {
                moved = true;
                pump.session().handle_statement_stored(now())?;
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the service's new statement is not stored; its keys are not renewed");
            }
            None => {}
        }
        if let Some(admission) = poll_slot(&mut self.admitted, cx)
            && admission != Admission::Ok
        {
            moved = true;
            control.close(admission);
        }
        Ok(moved)
    }

    fn begin(&mut self, event: Event) {
        match (event, &self.owner.part) {
            (Event::KeyOperation { peer }, _) => self.secret = Some(self.owner.key.ecdh(peer)),
            (Event::NewStatement(statement), Part::Gateway(keep)) => {
                self.kept = Some(store(*keep, statement));
            }
            (Event::Renewed, Part::Service(registry, hello)) => {
                self.admitted = Some(look_up(*registry, hello.clone()));
            }
            (Event::RenewalFailed(error), _) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(
                    error,
                    "a session's keys were not renewed; it is tried again"
                );
            }
            // Nothing to do, or of an earlier stage.
            (
                Event::NewStatement(_)
                | Event::Renewed
                | Event::Peer { .. }
                | Event::Open { .. }
                | Event::Data(_)
                | Event::Closed(_),
                _,
            ) => {}
        }
    }
}

fn store(keep: &dyn KeepStatement, statement: Statement) -> BoxFuture<'_, io::Result<()>> {
    async move { keep.keep(&statement).await }.boxed()
}

fn look_up(registry: &dyn Registry, hello: PeerHello) -> BoxFuture<'_, Admission> {
    async move { registry.admit(&hello).await }.boxed()
}

fn poll_slot<T>(slot: &mut Option<BoxFuture<'_, T>>, cx: &mut Context<'_>) -> Option<T> {
    match slot.as_mut()?.poll_unpin(cx) {
        Poll::Ready(done) => {
            *slot = None;
            Some(done)
        }
        Poll::Pending => None,
    }
}
