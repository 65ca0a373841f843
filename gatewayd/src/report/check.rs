//! What `gatewayctl check` found.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `GET /v1/check`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckReport {
    /// `check/1`.
    pub schema: String,
    /// In the order in which they are best read: what stands in the way of the rest comes first.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Area and subject: `tpm.device`.
    pub id: String,
    /// How it was found.
    pub result: Verdict,
    /// What was found.
    pub what: String,
    /// Where, if that is not in the other words: a file or a device.
    pub r#where: Option<String>,
    /// Why it is so.
    pub why: Option<String>,
    /// What is not affected, where one might fear that it is.
    #[serde(default)]
    pub kept: Option<String>,
    /// What to do; never absent where something is wrong.
    pub r#do: Option<String>,
    /// What was measured, whole, under names that tell the unit: for programs.
    #[serde(default)]
    pub values: Map<String, Value>,
}

/// How something was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The gateway works, and somebody should look.
    Warn,
    /// The gateway does not do its work.
    Fail,
}

impl Check {
    /// Something that is as it should be.
    #[must_use]
    pub fn ok(id: &str, what: impl Into<String>) -> Self {
        Self {
            id: id.to_owned(),
            result: Verdict::Ok,
            what: what.into(),
            r#where: None,
            why: None,
            kept: None,
            r#do: None,
            values: Map::new(),
        }
    }

    /// Something that somebody should look at, and what to do about it.
    #[must_use]
    pub fn warn(id: &str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            result: Verdict::Warn,
            r#do: Some(advice.into()),
            ..Self::ok(id, what)
        }
    }

    /// Something that keeps the gateway from its work, and what to do about it.
    #[must_use]
    pub fn fail(id: &str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            result: Verdict::Fail,
            ..Self::warn(id, what, advice)
        }
    }

    /// With the reason.
    #[must_use]
    pub fn because(self, why: impl Into<String>) -> Self {
        Self {
            why: Some(why.into()),
            ..self
        }
    }

    /// With the place.
    #[must_use]
    pub fn at(self, place: impl Into<String>) -> Self {
        Self {
            r#where: Some(place.into()),
            ..self
        }
    }

    /// With what is not affected.
    #[must_use]
    pub fn keeping(self, kept: impl Into<String>) -> Self {
        Self {
            kept: Some(kept.into()),
            ..self
        }
    }

    /// With a value for programs.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.values.insert(name.to_owned(), value.into());
        self
    }
}
