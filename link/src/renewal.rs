//! What an open session asks of its owner while its keys are renewed (protocol.md 2.5).

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll};

use channel::{Admission, Event, KeyError, SessionError, SharedSecret, Statement, StaticKey};
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
            unless_late(pump.session().handle_shared_secret(now(), secret))?;
        }
        match poll_slot(&mut self.kept, cx) {
            Some(Ok(())) => {
                moved = true;
                unless_late(pump.session().handle_statement_stored(now()))?;
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the service's new statement is not stored; its keys are renewed later");
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

/// What is late the session has given up on, or it is over: it refuses the call without harm.
fn unless_late(taken: Result<(), SessionError>) -> Result<(), LinkError> {
    match taken {
        Err(SessionError::LocalOutOfTurn) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
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

#[cfg(test)]
mod tests {
    use channel::{
        Fingerprint, InitiatorConfig, KeyKind, Purpose, RecordKey, ResponderConfig, Session,
        SoftwareSigningKey, SoftwareStaticKey, StatementContent, Suite,
    };
    use futures::future::ready;
    use getrandom::SysRng;
    use rand_core::UnwrapErr;

    use super::*;

    #[tokio::test]
    async fn a_statement_that_is_stored_too_late_does_no_harm() {
        let key = SoftwareStaticKey::generate(&mut UnwrapErr(SysRng));
        let mut pump = pump(gateway(&key, [0; 32])).await;
        let mut renewals = renewals(&key);
        renewals.kept = Some(ready(Ok(())).boxed());

        assert!(renewals.poll_once(&mut pump).is_ok());
    }

    /// An operation that the session has given up on may end when the next is asked for.
    #[tokio::test]
    async fn an_old_answer_of_the_key_is_not_taken_for_a_new_one() {
        let mut rng = UnwrapErr(SysRng);
        let key = SoftwareStaticKey::generate(&mut rng);
        let content = StatementContent {
            serial: 1,
            channel_keys: vec![key.public()],
            record_keys: vec![RecordKey::generate(&mut rng).public()],
            online_keys: Vec::new(),
        };
        let statement = Statement::issue(content, &SoftwareSigningKey::generate(&mut rng)).unwrap();
        let hello = gateway(&key, *statement.fingerprint().bytes());
        let config = ResponderConfig {
            statement,
            static_key: key.public(),
        };
        let service = Session::respond(config, Box::new(rng), now()).unwrap();
        let mut pump = pump(service).await;
        let mut renewals = renewals(&key);
        renewals.secret = Some(ready(Err(KeyError::new("of an attempt before"))).boxed());
        pump.session()
            .handle_bytes(now(), hello.transmit())
            .unwrap();

        assert!(renewals.poll_once(&mut pump).is_ok());
        assert!(!pump.session().transmit().is_empty(), "message 2 is made");
    }

    impl Renewals<'_> {
        fn poll_once(&mut self, pump: &mut Pump) -> Result<bool, LinkError> {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            self.poll(&mut cx, pump, &Control::default())
        }
    }

    fn renewals(key: &SoftwareStaticKey) -> Renewals<'_> {
        let part = Part::Gateway(&NoShelf);
        Renewals::new(Owner { key, part })
    }

    struct NoShelf;

    impl KeepStatement for NoShelf {
        fn keep<'a>(&'a self, _: &'a Statement) -> BoxFuture<'a, io::Result<()>> {
            ready(Ok(())).boxed()
        }
    }

    fn gateway(key: &SoftwareStaticKey, pin: [u8; 32]) -> Session {
        let config = InitiatorConfig {
            suite: Suite::AesGcm,
            pin: Fingerprint::new(KeyKind::ServiceIdentity, pin),
            held: None,
            static_key: key.public(),
            purpose: Purpose::Deliver,
            version: String::new(),
        };
        Session::initiate(config, Box::new(UnwrapErr(SysRng)), now()).unwrap()
    }

    async fn pump(session: Session) -> Pump {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Pump::new(
            tokio::net::TcpStream::connect(address).await.unwrap(),
            session,
        )
    }
}
