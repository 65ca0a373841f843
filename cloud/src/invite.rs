//! `gateway-cloud invite`: a one-time ticket for a gateway.

use std::time::Duration;

use anyhow::{Context, ensure};
use wire::ticket::Ticket;
use zeroize::Zeroizing;

use crate::registry::{Invitation, Registry, now_ms};

/// What `invite` prints.
pub struct Invited {
    /// The ticket; whoever has it first, enrols.
    pub ticket: Zeroizing<String>,
    /// Until when, in milliseconds since 1970.
    pub expires_ms: i64,
}

/// Makes a ticket of the service with this fingerprint, reachable at `addresses`.
///
/// # Errors
///
/// If the name is none, or a gateway of this name is enrolled, or no address is known.
pub fn invite(
    registry: &Registry,
    service: [u8; 32],
    addresses: &[String],
    (name, labels): (&str, &[String]),
    ttl: Duration,
) -> anyhow::Result<Invited> {
    ensure!(
        wire::is_name(name),
        "{name:?} is no name: a-z, 0-9, - and _, at most 63, beginning with a letter or digit"
    );
    for label in labels {
        ensure!(
            label.find('=').is_some_and(|at| 0 < at) && !label.contains(char::is_control),
            "label {label:?} is not KEY=VALUE"
        );
    }
    ensure!(
        !addresses.is_empty(),
        "gateways would not know where to go; set relays or advertise in gateway-cloud.toml"
    );
    let mut ticket = Ticket {
        service,
        id: [0; 8],
        secret: Zeroizing::new([0; 16]),
        urls: addresses
            .iter()
            .take(wire::ticket::URLS_MAX)
            .cloned()
            .collect(),
        ek: None,
    };
    getrandom::fill(&mut ticket.id).context("no randomness")?;
    getrandom::fill(&mut *ticket.secret).context("no randomness")?;
    let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
    let expires_ms = now_ms().saturating_add(ttl_ms);
    let mut labels = labels.to_vec();
    labels.sort_unstable();
    let invitation = Invitation {
        name: name.to_owned(),
        labels,
        expires_ms,
    };
    registry.invite(&ticket.id, &ticket.key(), &invitation)?;
    Ok(Invited {
        ticket: ticket.to_text(),
        expires_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_leads_to_the_service_and_its_labels_are_sorted() {
        let (registry, _folder) = registry();
        let addresses = [
            "relay://a:1",
            "relay://b:1",
            "tcp://c:1",
            "tcp://d:1",
            "tcp://e:1",
        ];
        let addresses = addresses.map(str::to_owned);
        let labels = ["site=venlo".to_owned(), "row=7".to_owned()];
        let who = ("greenhouse-7", labels.as_slice());
        let invited = invite(&registry, [9; 32], &addresses, who, TTL).unwrap();

        let ticket = Ticket::parse(&invited.ticket).unwrap();

        assert_eq!(ticket.service, [9; 32]);
        assert_eq!(ticket.urls, addresses[..4]);
        let left_ms = invited.expires_ms - now_ms();
        assert!((590_000..=600_000).contains(&left_ms), "{left_ms}");
        let key = registry
            .ticket_key(&ticket.id, b"ek")
            .unwrap()
            .ok()
            .unwrap();
        assert_eq!(key.as_bytes(), ticket.key().as_bytes());
        let claim = registry.claim(&ticket.id, b"ek").unwrap().unwrap();
        assert_eq!(claim.name, "greenhouse-7");
    }

    #[test]
    fn what_could_not_be_used_is_not_invited() {
        let (registry, _folder) = registry();
        let address = ["tcp://a:1".to_owned()];
        let refusal = |addresses: &[String], name: &str, label: &str| {
            let labels = [label.to_owned()];
            let invited = invite(&registry, [9; 32], addresses, (name, &labels), TTL);
            invited.err().unwrap().to_string()
        };
        for (name, label, words) in [
            ("Greenhouse", "a=b", "is no name"),
            ("", "a=b", "is no name"),
            ("a", "site", "is not KEY=VALUE"),
            ("a", "=venlo", "is not KEY=VALUE"),
            ("a", "site=ven\nlo=1", "is not KEY=VALUE"),
        ] {
            let said = refusal(&address, name, label);
            assert!(said.contains(words), "{said}");
        }
        let said = refusal(&[], "a", "a=b");
        assert!(said.contains("set relays or advertise"), "{said}");
    }

    fn registry() -> (Registry, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (Registry::open(folder.path()).unwrap(), folder)
    }

    const TTL: Duration = Duration::from_secs(600);
}
