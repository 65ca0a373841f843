//! The floors: crates import only from floors below, and pure crates link nothing that acts.
//!
//! `ARCHITECTURE.md` draws this table.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, ensure};

/// A crate of the house and the floor it stands on.
const FLOORS: &[(&str, u8)] = &[
    ("gatewayd", 2),
    ("cloud", 2),
    ("drivers", 1),
    ("hsm", 1),
    ("spool", 1),
    ("link", 1),
    ("metrics", 1),
    ("secret", 1),
    ("channel", PURE),
    ("wire", PURE),
];

/// The floor that opens nothing, sleeps nowhere, spawns nothing and asks no clock.
pub(crate) const PURE: u8 = 0;

/// Crates that only one crate of the house may link, however deep: `(package, its only user)`.
const RESERVED: &[(&str, &str)] = &[("tss-esapi", "hsm"), ("btleplug", "drivers")];

/// Packages that a pure crate must not link, however deep: runtimes, sockets, databases.
const ACTING: &[&str] = &[
    "tokio",
    "async-std",
    "smol",
    "async-io",
    "mio",
    "socket2",
    "nix",
    "rusqlite",
    "tempfile",
];

/// Names of the crates on the pure floor.
pub(crate) fn pure_crates() -> impl Iterator<Item = &'static str> {
    FLOORS
        .iter()
        .filter(|(_, floor)| *floor == PURE)
        .map(|(name, _)| *name)
}

/// Names of all crates of the house.
pub(crate) fn crates() -> impl Iterator<Item = &'static str> {
    FLOORS.iter().map(|(name, _)| *name)
}

/// Checks every manifest and what the pure crates link in the end.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut breaches = Vec::new();
    for (name, _) in FLOORS {
        let path = root.join(name).join("Cargo.toml");
        let manifest =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        breaches.extend(imports(name, &manifest.parse()?));
    }
    for name in pure_crates() {
        breaches.extend(acting(name, &linked(root, name)?));
    }
    for name in crates() {
        breaches.extend(reserved(name, &linked(root, name)?));
    }
    Ok(breaches)
}

/// What the manifest imports against the floors.
///
/// `[dev-dependencies]` are not looked at: a test may use the whole house.
fn imports(name: &str, manifest: &toml::Table) -> Vec<String> {
    let Some((_, floor)) = FLOORS.iter().find(|(other, _)| *other == name) else {
        return vec![format!("{name}: is on no floor; give it one in xtask")];
    };
    let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
    dependencies
        .into_iter()
        .flat_map(toml::Table::keys)
        .filter_map(|import| FLOORS.iter().find(|(other, _)| other == import))
        .filter(|(_, below)| below >= floor)
        .map(|(import, below)| {
            format!("{name}/Cargo.toml: floor {floor} imports {import} of floor {below}")
        })
        .collect()
}

fn acting(name: &str, linked: &[String]) -> Vec<String> {
    ACTING
        .iter()
        .filter(|package| linked.iter().any(|other| other == *package))
        .map(|package| format!("{name}: a pure crate links {package}"))
        .collect()
}

fn reserved(name: &str, linked: &[String]) -> Vec<String> {
    RESERVED
        .iter()
        .filter(|(package, user)| {
            linked.iter().any(|other| other == package)
                && name != *user
                && !linked.iter().any(|other| other == user)
        })
        .map(|(package, user)| format!("{name}: links {package}, which belongs to {user}"))
        .chain(
            // Verifying evidence takes arithmetic alone.
            (name == "cloud" && linked.iter().any(|other| other == "hsm"))
                .then(|| format!("{name}: links hsm")),
        )
        .collect()
}

/// Every package that the crate links when it is built for users, itself included.
fn linked(root: &Path, name: &str) -> anyhow::Result<Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--package", name])
        .args(["--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(root)
        .output()
        .context("cannot run cargo tree")?;
    ensure!(
        output.status.success(),
        "cargo tree failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_from_the_same_floor_is_a_breach() {
        let manifest = "[dependencies]\nspool.workspace = true\nwire.workspace = true\n";
        assert_eq!(
            imports("link", &manifest.parse().unwrap()),
            ["link/Cargo.toml: floor 1 imports spool of floor 1"]
        );
    }

    #[test]
    fn a_test_may_use_the_whole_house() {
        let manifest = "[dev-dependencies]\ncloud.workspace = true\n";
        assert!(imports("wire", &manifest.parse().unwrap()).is_empty());
    }

    #[test]
    fn a_pure_crate_that_links_a_runtime_is_a_breach() {
        let linked = ["wire", "minicbor", "tokio"].map(str::to_owned);
        assert_eq!(acting("wire", &linked), ["wire: a pure crate links tokio"]);
    }

    #[test]
    fn the_cloud_that_links_the_tpm_is_a_breach() {
        let direct = ["cloud", "tss-esapi"].map(str::to_owned);
        let through_hsm = ["cloud", "hsm", "tss-esapi"].map(str::to_owned);
        assert_eq!(reserved("cloud", &direct).len(), 1);
        assert_eq!(reserved("cloud", &through_hsm).len(), 1);
        assert!(
            reserved(
                "gatewayd",
                &["gatewayd", "hsm", "tss-esapi"].map(str::to_owned)
            )
            .is_empty()
        );
    }
}
