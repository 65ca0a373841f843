//! Which sensors a service receives.

/// Patterns for names of sensors: `*` stands for any characters, a leading `!` excludes.
///
/// A name matches if some pattern includes it and none excludes it; where all patterns exclude,
/// whatever they leave matches. The default matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns {
    includes: Vec<String>,
    excludes: Vec<String>,
}

impl Patterns {
    /// Returns whether the readings of `sensor` are meant.
    #[must_use]
    pub fn matches(&self, sensor: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, sensor));
        (self.includes.is_empty() || any(&self.includes)) && !any(&self.excludes)
    }

    /// Adds a pattern; `false`, and nothing is added, if it is none.
    pub(super) fn add(&mut self, text: &str) -> bool {
        let (patterns, text) = match text.strip_prefix('!') {
            Some(rest) => (&mut self.excludes, rest),
            None => (&mut self.includes, text),
        };
        // With a letter for each star, a pattern is a name.
        let fine = wire::is_name(&text.replace('*', "x"));
        if fine {
            patterns.push(text.to_owned());
        }
        fine
    }
}

/// Whether `pattern` stands for `name`.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(start) else {
        return false;
    };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    // The first place is always as good as a later one: what follows has more room.
    for part in middle.split('*') {
        let Some((_, after)) = name.split_once(part) else {
            return false;
        };
        name = after;
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_match_and_exclamation_marks_exclude() {
        let cases: [(&[&str], &str, bool); 13] = [
            (&[], "climate", true),
            (&["*"], "climate", true),
            (&["climate"], "climate", true),
            (&["climate"], "climate-2", false),
            (&["tank*"], "tank", true),
            (&["tank*"], "tank-7", true),
            (&["tank*"], "the-tank", false),
            (&["*-a-*-b"], "x-a-y-a-z-b", true),
            (&["*-a-*-b"], "x-a-b", false),
            (&["ab*ba"], "aba", false),
            (&["*", "!gps"], "gps", false),
            (&["!gps*"], "climate", true),
            (&["!*", "climate"], "climate", false),
        ];
        for (texts, sensor, expected) in cases {
            let mut patterns = Patterns::default();
            for text in texts {
                assert!(patterns.add(text), "{text}");
            }
            assert_eq!(patterns.matches(sensor), expected, "{texts:?} {sensor}");
        }
    }

    #[test]
    fn what_no_name_can_match_is_no_pattern() {
        let long = "a".repeat(64);
        for text in ["", "!", "!!a", "A*", "-*", "a b", "a.b", "*?", &long] {
            assert!(!Patterns::default().add(text), "{text}");
        }
        assert!(Patterns::default().add(&"a".repeat(63)));
    }
}
