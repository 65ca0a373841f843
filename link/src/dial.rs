//! From an address to a connection on which the service listens.

use std::time::Duration;

use channel::Fingerprint;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::relay::{self, Token};
use crate::{Address, LinkError, Stage};

/// Connects to the service, through the relay if the address is one.
///
/// `pin` is the service that a relay is asked for, `token` what the relay may want to see; a
/// direct address needs neither.
///
/// # Errors
///
/// [`LinkError::Unreachable`], [`LinkError::Timeout`] after 10 s without a connection or 15 s
/// without the relay's answer, [`LinkError::RelayRefused`] and the other errors of a relay,
/// [`LinkError::LocalAddress`] if the address names another service than `pin`.
pub async fn dial(
    address: &Address,
    pin: &Fingerprint,
    token: Option<&Token>,
) -> Result<TcpStream, LinkError> {
    match address {
        Address::Tcp { .. } => dial_tcp(address).await,
        Address::Relay {
            service: Some(service),
            ..
        } if service != pin => Err(LinkError::LocalAddress),
        Address::Relay { .. } => {
            let stream = dial_tcp(address).await?;
            relay::hello(stream, pin, token).await
        }
    }
}

/// Connects to the host itself. Its addresses are tried one after the other.
pub(crate) async fn dial_tcp(address: &Address) -> Result<TcpStream, LinkError> {
    let connecting = TcpStream::connect((address.host(), address.port()));
    let connected = timeout(CONNECT_TIME_MAX, connecting).await;
    let connected = connected.map_err(|_| LinkError::Timeout {
        stage: Stage::Connect,
        limit: CONNECT_TIME_MAX,
    })?;
    let stream = connected.map_err(|source| LinkError::Unreachable {
        address: address.authority(),
        source,
    })?;
    // Records go out when they are ready; waiting to fill a segment would only add delay.
    stream.set_nodelay(true).map_err(LinkError::Transport)?;
    Ok(stream)
}

/// Three lost SYNs (RFC 6298: after 1, 3 and 7 s) are no reason to give up, four are.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
