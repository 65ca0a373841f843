//! Which ciphers a session of this machine uses.

use channel::Suite;

/// The suite that this machine's processor is best at (protocol.md 2.1: the gateway chooses).
///
/// In software AES is slow, or leaks its key through the cache; ChaCha20 is neither. With
/// instructions for AES and for carry-less products, which GCM needs, AES-GCM is the faster one.
pub(super) fn suite() -> Suite {
    suite_for(has_aes())
}

fn suite_for(has_aes: bool) -> Suite {
    if has_aes {
        Suite::AesGcm
    } else {
        Suite::ChaChaPoly
    }
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

/// On 64-bit ARM the carry-less product comes with `aes` (FEAT_PMULL); a Raspberry Pi 4 has
/// neither, a Pi 5 both.
#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aes_is_chosen_only_where_the_processor_has_it() {
        assert_eq!(suite_for(true), Suite::AesGcm);
        assert_eq!(suite_for(false), Suite::ChaChaPoly);
    }

    /// `/proc/cpuinfo` is another's word for the same.
    #[test]
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    fn the_processor_is_asked() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
        let has = |flag| flags.is_some_and(|line| line.split(' ').any(|word| word == flag));
        assert_eq!(has_aes(), has("aes") && has("pclmulqdq"));
    }
}
