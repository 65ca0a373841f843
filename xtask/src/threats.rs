//! The threat model and the protocol's list of negative tests name the tests that hold their lines;
//! every one of them must exist.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Context;

use crate::source;

/// Checks every `crate: test` of both pages.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut breaches = Vec::new();
    for page in PAGES {
        breaches.extend(check_page(root, page)?);
    }
    Ok(breaches)
}

fn check_page(root: &Path, page: &str) -> anyhow::Result<Vec<String>> {
    let path = root.join(page);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {page}"))?;
    let mut breaches = Vec::new();
    for (line, package, test) in named(&text) {
        let mut tests = BTreeSet::new();
        for folder in ["src", "tests"] {
            let folder = root.join(&package).join(folder);
            if folder.is_dir() {
                source::visit(&folder, &mut |_, text| tests.extend(functions(text)))?;
            }
        }
        if !tests.contains(&test) {
            breaches.push(format!("{page}:{line}: {package} has no test {test}"));
        }
    }
    Ok(breaches)
}

/// Line, crate and test of each name in backticks.
fn named(page: &str) -> Vec<(usize, String, String)> {
    let mut found = Vec::new();
    for (line, text) in (1..)
        .zip(page.lines())
        .filter(|(_, text)| text.starts_with('|'))
    {
        for quoted in text.split('`').skip(1).step_by(2) {
            if let Some((package, test)) = quoted.split_once(": ") {
                found.push((line, package.to_owned(), test.to_owned()));
            }
        }
    }
    found
}

/// Names of the functions in a file.
fn functions(text: &str) -> BTreeSet<String> {
    text.split("fn ")
        .skip(1)
        .filter_map(|rest| rest.split_once('('))
        .map(|(name, _)| name.trim().to_owned())
        .collect()
}

const PAGES: [&str; 2] = ["docs/threat-model.md", "docs/protocol.md"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_backticks_are_found_with_their_line() {
        let model = "# `not: this`\n| a | `hsm: x` `wire: y` and `SO_PEERCRED` |\n";
        let expected = [(2, "hsm", "x"), (2, "wire", "y")]
            .map(|(line, package, test)| (line, package.to_owned(), test.to_owned()));
        assert_eq!(named(model), expected);
    }

    #[test]
    fn functions_are_found_whether_async_or_not() {
        let text = "fn one() {}\n    async fn two(a: u8) {}";
        assert_eq!(functions(text), ["one", "two"].map(str::to_owned).into());
    }
}
