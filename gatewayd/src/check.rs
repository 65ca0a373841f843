//! What `gatewayctl check` looks at.
//!
//! A check is a question with an id, `AREA.SUBJECT`. Each area is a file here: it gathers facts and
//! then decides, in a pure function, what they mean. A question that cannot be answered is not
//! listed as answered; what stood in its way is then listed, also if nobody asked for that.

mod device;
mod tpm;
mod words;

use crate::report::{Check, Verdict};

pub(crate) use tpm::{Site, look as look_at_tpm};

/// The ids of everything that can be looked at.
pub(crate) fn known() -> impl Iterator<Item = &'static str> {
    tpm::IDS.iter().copied()
}

/// Which checks somebody asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted(Vec<String>);

/// No check has this id, or one that begins with it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "there is no check {what:?}; the nearest is \"{nearest}\", and there are: {}",
    known().collect::<Vec<_>>().join(" ")
)]
pub(crate) struct UnknownCheck {
    /// What was asked for.
    pub(crate) what: String,
    /// The area or check that is most like it.
    pub(crate) nearest: &'static str,
}

impl Wanted {
    /// Reads areas and ids with commas between; none stand for all.
    ///
    /// # Errors
    ///
    /// The first that is unknown.
    pub(crate) fn parse(only: &str) -> Result<Self, UnknownCheck> {
        let wanted = only
            .split(',')
            .map(str::trim)
            .filter(|what| !what.is_empty());
        let wanted = wanted.map(|what| {
            if known().any(|id| covers(what, id)) {
                return Ok(what.to_owned());
            }
            let nearest = known()
                .chain(known().map(area))
                .min_by_key(|name| strsim::damerau_levenshtein(name, what));
            Err(UnknownCheck {
                what: what.to_owned(),
                nearest: nearest.unwrap_or_default(),
            })
        });
        wanted.collect::<Result<_, _>>().map(Self)
    }

    fn wants(&self, id: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|what| covers(what, id))
    }

    /// Those of `checks` that are wanted. Where one of them could not be made, also whatever is
    /// wrong, for that is why.
    pub(crate) fn select(&self, checks: Vec<Check>) -> Vec<Check> {
        let made = |id| checks.iter().any(|check| check.id == id);
        let complete = known().filter(|id| self.wants(id)).all(made);
        let listed =
            |check: &Check| self.wants(&check.id) || (!complete && check.result != Verdict::Ok);
        checks.into_iter().filter(listed).collect()
    }
}

/// `tpm` covers `tpm.keys`, and so does `tpm.keys`.
fn covers(what: &str, id: &str) -> bool {
    id.strip_prefix(what)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn area(id: &str) -> &str {
    id.split_once('.').map_or(id, |(area, _)| area)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_stands_for_its_checks_and_nothing_for_all() {
        let tpm = Wanted::parse("tpm").unwrap();
        assert!(known().all(|id| tpm.wants(id)));
        let all = Wanted::parse("").unwrap();
        assert!(known().all(|id| all.wants(id)));
        let two = Wanted::parse("tpm.keys, tpm.root").unwrap();
        let wanted = known().filter(|id| two.wants(id)).collect::<Vec<_>>();
        assert_eq!(wanted, ["tpm.root", "tpm.keys"]);
    }

    #[test]
    fn an_unknown_check_is_answered_with_the_nearest_and_all() {
        for (what, nearest) in [
            ("tmp", "tpm"),
            ("tpm.key", "tpm.keys"),
            ("tpm.", "tpm"),
            ("tpm.pcrs.sha1", "tpm.pcrs"),
        ] {
            let error = Wanted::parse(&format!("tpm,{what}")).unwrap_err();
            assert_eq!((error.what.as_str(), error.nearest), (what, nearest));
            let text = error.to_string();
            assert!(known().all(|id| text.contains(id)), "{text}");
        }
    }

    #[test]
    fn what_could_not_be_looked_at_is_never_green() {
        let checks = vec![
            Check::fail("tpm.device", "there is none", "buy one"),
            Check::ok("tpm.resets", "none"),
        ];
        let asked = Wanted::parse("tpm.latency").unwrap();
        let listed = asked.select(checks.clone());
        assert_eq!(listed, checks[..1]);
        let asked = Wanted::parse("tpm.resets").unwrap();
        assert_eq!(asked.select(checks.clone()), checks[1..]);
    }
}
