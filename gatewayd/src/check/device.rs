//! The device node of the TPM: who may open it, and what stands in the way.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use hsm::Tpm;
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgroups};

use crate::report::Check;

/// What the system says about the device of the TPM, and about this process.
#[derive(Clone, Debug, Default)]
pub(super) struct DeviceFacts {
    /// The node at the configured path; `None` if there is none, or no path is configured.
    pub(super) node: Option<Node>,
    /// Another node of a TPM, where there is none at the configured path.
    pub(super) other: Option<PathBuf>,
    /// The user that this process runs as.
    pub(super) user: String,
    /// What the board calls itself; empty where it does not.
    pub(super) board: String,
}

/// A file where the TPM's device is configured.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Whether it is a device at all.
    pub(super) is_device: bool,
    /// The nine bits of its mode.
    pub(super) mode: u32,
    /// The group it belongs to.
    pub(super) group: NodeGroup,
    /// Whether it belongs to the user of this process.
    pub(super) is_own: bool,
}

/// The group of a device, as seen from this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NodeGroup {
    /// The service runs in a user namespace (`PrivateUsers=`) that does not show it.
    Hidden,
    /// It is root's, which nobody should be added to.
    Root,
    /// This one.
    Named {
        /// Its name; its number where it has none.
        name: String,
        /// Whether this process is in it.
        has_process: bool,
        /// Whether the user is in it by now, and this process is from before that.
        has_user: bool,
    },
}

impl DeviceFacts {
    /// Asks the system. Reads names of users and groups, so it may block.
    pub(super) fn look(tpm: &Tpm) -> Self {
        let user = User::from_uid(geteuid()).ok().flatten();
        let user = user.map_or_else(|| "gatewayd".to_owned(), |user| user.name);
        let board = fs::read_to_string(BOARD).unwrap_or_default();
        let Tpm::Device(path) = tpm else {
            return Self {
                user,
                ..Self::default()
            };
        };
        let node = fs::metadata(path).ok();
        let others = USUAL.iter().map(Path::new);
        let other = others.filter(|_| node.is_none()).find(|path| path.exists());
        Self {
            node: node.map(|found| Node {
                is_device: found.file_type().is_char_device(),
                mode: found.mode() & 0o777,
                group: NodeGroup::of(Gid::from_raw(found.gid()), &user),
                is_own: Uid::from_raw(found.uid()) == geteuid(),
            }),
            other: other.map(Path::to_owned),
            user,
            board,
        }
    }

    /// Why there is no TPM at `path`.
    pub(super) fn absent(&self, id: &str, path: &Path) -> Check {
        let shown = path.display();
        if let Some(node) = &self.node {
            if !node.is_device {
                return Check::fail(
                    id,
                    format!("{shown} is no device"),
                    format!(
                        "set tpm.device in gatewayd.toml, usually to \"{}\"",
                        USUAL[0]
                    ),
                );
            }
            return Check::fail(
                id,
                format!("{shown} is there, and no TPM answers behind it"),
                "read dmesg, and check how the TPM is plugged in; then reboot",
            );
        }
        if let Some(other) = &self.other {
            return Check::fail(
                id,
                format!("{shown} does not exist, and {} does", other.display()),
                format!(
                    "set tpm.device = \"{}\" in gatewayd.toml; systemctl restart gatewayd",
                    other.display()
                ),
            );
        }
        let advice = if self.board.starts_with("Raspberry Pi") {
            "add \"dtoverlay=tpm-slb9670\" to /boot/firmware/config.txt and reboot"
        } else {
            "enable the TPM in the firmware's setup or in the device tree, and reboot"
        };
        Check::fail(id, format!("{shown} does not exist"), advice)
            .because("the kernel found no TPM")
    }

    /// Why this process may not open `path`.
    pub(super) fn denied(&self, id: &str, path: &Path) -> Check {
        let (shown, user) = (path.display(), &self.user);
        let Some(node) = &self.node else {
            return Check::fail(
                id,
                format!("{user} has no permission for {shown}"),
                format!("ls -l {shown} tells the group that has; adduser {user} GROUP; {RESTART}"),
            );
        };
        let mode = node.mode;
        let group_may = mode & 0o060 == 0o060;
        let others_may = mode & 0o006 == 0o006;
        let check = |what: String, advice: String| {
            Check::fail(id, what, advice).with("mode", format!("{mode:04o}"))
        };
        let open_to_us = others_may || (node.is_own && mode & 0o600 == 0o600);
        match &node.group {
            _ if open_to_us => self.forbidden(id, path, node),
            NodeGroup::Hidden if group_may => check(
                format!("{shown} is open to its group (mode {mode:04o}), and {user} is not in it"),
                format!("ls -l {shown} tells the group; adduser {user} GROUP; {RESTART}"),
            ),
            NodeGroup::Named {
                has_process: true, ..
            } if group_may => self.forbidden(id, path, node),
            NodeGroup::Named {
                name,
                has_user: true,
                ..
            } if group_may => check(
                format!("{user} is in group {name}, and gatewayd runs since before that"),
                RESTART.to_owned(),
            ),
            NodeGroup::Named { name, .. } if group_may => check(
                format!(
                    "{shown} belongs to group {name} (mode {mode:04o}), and {user} is not in it"
                ),
                format!("adduser {user} {name}; {RESTART}"),
            ),
            NodeGroup::Root | NodeGroup::Hidden | NodeGroup::Named { .. } => check(
                format!("{shown} is root's alone (mode {mode:04o})"),
                format!("{UDEV}; then reboot, and adduser {user} tss"),
            ),
        }
    }

    /// The mode allows it, so something else does not.
    fn forbidden(&self, id: &str, path: &Path, node: &Node) -> Check {
        let (shown, user, mode) = (path.display(), &self.user, node.mode);
        Check::fail(
            id,
            format!("{shown} is open to {user} (mode {mode:04o}), and something else forbids it"),
            format!(
                "systemctl edit gatewayd: under [Service] write DeviceAllow={shown} rw; if that is \
                 not it, read dmesg for a security module; {RESTART}"
            ),
        )
        .with("mode", format!("{mode:04o}"))
    }
}

impl NodeGroup {
    fn of(group: Gid, user: &str) -> Self {
        if group.as_raw() == 0 {
            return Self::Root;
        }
        if Some(group.as_raw()) == overflow_group() {
            return Self::Hidden;
        }
        let found = Group::from_gid(group).ok().flatten();
        let has_process =
            getegid() == group || getgroups().is_ok_and(|groups| groups.contains(&group));
        match found {
            Some(found) => Self::Named {
                has_user: found.mem.iter().any(|member| member == user),
                name: found.name,
                has_process,
            },
            None => Self::Named {
                name: group.to_string(),
                has_process,
                has_user: false,
            },
        }
    }
}

/// The number under which groups appear that a user namespace does not map; nothing else has it.
fn overflow_group() -> Option<u32> {
    let text: io::Result<String> = fs::read_to_string("/proc/sys/kernel/overflowgid");
    text.ok()?.trim().parse().ok()
}

/// Where kernels put the TPM: with their resource manager, and without.
const USUAL: [&str; 2] = ["/dev/tpmrm0", "/dev/tpm0"];

/// The device tree's name of the board.
const BOARD: &str = "/proc/device-tree/model";

const RESTART: &str = "systemctl restart gatewayd";

/// What gives the device to the group `tss`.
const UDEV: &str = "apt install tpm-udev (elsewhere write into /etc/udev/rules.d/60-tpm.rules: \
                    KERNEL==\"tpmrm[0-9]*\", GROUP=\"tss\", MODE=\"0660\")";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_group_is_named_and_the_line_to_type_too() {
        let check = facts(0o660, tss(false, false)).denied(ID, path());
        assert_eq!(
            check.what,
            "/dev/tpmrm0 belongs to group tss (mode 0660), and gatewayd is not in it"
        );
        assert_eq!(
            check.r#do.unwrap(),
            "adduser gatewayd tss; systemctl restart gatewayd"
        );
        assert_eq!(check.values["mode"], "0660");
    }

    #[test]
    fn each_way_to_have_no_permission_has_its_own_advice() {
        let root = NodeGroup::Root;
        for (mode, group, words, advice) in [
            (
                0o660,
                tss(false, true),
                "runs since before",
                "systemctl restart",
            ),
            (
                0o660,
                tss(true, true),
                "something else forbids",
                "DeviceAllow=/dev/tpmrm0 rw",
            ),
            (
                0o666,
                tss(false, false),
                "something else forbids",
                "DeviceAllow",
            ),
            (
                0o600,
                tss(true, true),
                "root's alone (mode 0600)",
                "60-tpm.rules",
            ),
            (
                0o640,
                tss(true, true),
                "root's alone (mode 0640)",
                "60-tpm.rules",
            ),
            (
                0o000,
                tss(true, true),
                "root's alone (mode 0000)",
                "60-tpm.rules",
            ),
            (0o660, root, "root's alone (mode 0660)", "tpm-udev"),
            (0o660, NodeGroup::Hidden, "not in it", "ls -l /dev/tpmrm0"),
            (0o600, NodeGroup::Hidden, "root's alone", "tpm-udev"),
        ] {
            let check = facts(mode, group.clone()).denied(ID, path());
            let found = check.r#do.unwrap();
            assert!(
                check.what.contains(words),
                "{mode:o} {group:?}: {}",
                check.what
            );
            assert!(found.contains(advice), "{mode:o} {group:?}: {found}");
            assert!(!found.contains("adduser gatewayd root"), "{found}");
        }
        let unknown = DeviceFacts {
            node: None,
            ..facts(0, NodeGroup::Root)
        };
        let check = unknown.denied(ID, path());
        assert!(check.what.contains("no permission for /dev/tpmrm0"));
    }

    #[test]
    fn a_device_of_our_own_is_not_blamed_on_its_group() {
        let mut own = facts(0o600, NodeGroup::Root);
        own.node.as_mut().unwrap().is_own = true;
        assert!(
            own.denied(ID, path())
                .what
                .contains("something else forbids")
        );
    }

    #[test]
    fn each_way_to_have_no_tpm_has_its_own_advice() {
        let none = DeviceFacts {
            node: None,
            ..facts(0, NodeGroup::Root)
        };
        let pi = DeviceFacts {
            board: "Raspberry Pi 5 Model B Rev 1.0\0".into(),
            ..none.clone()
        };
        let elsewhere = DeviceFacts {
            other: Some("/dev/tpm0".into()),
            ..none.clone()
        };
        let mut file = facts(0o644, NodeGroup::Root);
        file.node.as_mut().unwrap().is_device = false;
        for (facts, words, advice) in [
            (none, "does not exist", "firmware's setup"),
            (pi, "does not exist", "dtoverlay=tpm-slb9670"),
            (
                elsewhere,
                "and /dev/tpm0 does",
                "tpm.device = \"/dev/tpm0\"",
            ),
            (file, "is no device", "\"/dev/tpmrm0\""),
            (facts(0o660, tss(true, true)), "no TPM answers", "dmesg"),
        ] {
            let check = facts.absent(ID, path());
            let found = check.r#do.unwrap();
            assert!(check.what.contains(words), "{}", check.what);
            assert!(found.contains(advice), "{found}");
        }
    }

    #[test]
    fn the_system_tells_files_from_devices_and_whose_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tpm");
        fs::write(&file, "").unwrap();
        let facts = DeviceFacts::look(&Tpm::Device(file));
        let node = facts.node.unwrap();
        assert!(!node.is_device && node.is_own);
        assert!(!facts.user.is_empty());

        let facts = DeviceFacts::look(&Tpm::Device("/dev/null".into()));
        let node = facts.node.unwrap();
        assert!(node.is_device);
        assert_eq!(node.mode, 0o666);

        let nowhere = folder.path().join("none");
        assert!(DeviceFacts::look(&Tpm::Device(nowhere)).node.is_none());
    }

    #[test]
    fn a_group_that_the_namespace_hides_is_not_taken_for_nogroup() {
        let hidden = overflow_group().unwrap();
        assert_eq!(NodeGroup::of(Gid::from_raw(hidden), "x"), NodeGroup::Hidden);
        assert_eq!(NodeGroup::of(Gid::from_raw(0), "x"), NodeGroup::Root);
        let nameless = NodeGroup::of(Gid::from_raw(4_242_424), "x");
        assert!(
            matches!(&nameless, NodeGroup::Named { name, has_process: false, .. } if name == "4242424")
        );
    }

    fn facts(mode: u32, group: NodeGroup) -> DeviceFacts {
        DeviceFacts {
            node: Some(Node {
                is_device: true,
                mode,
                group,
                is_own: false,
            }),
            other: None,
            user: "gatewayd".into(),
            board: String::new(),
        }
    }

    fn tss(has_process: bool, has_user: bool) -> NodeGroup {
        NodeGroup::Named {
            name: "tss".into(),
            has_process,
            has_user,
        }
    }

    fn path() -> &'static Path {
        Path::new("/dev/tpmrm0")
    }

    const ID: &str = "tpm.device";
}
