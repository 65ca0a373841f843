#!/usr/bin/env bash
# Installs what building, testing and the demo need, and nothing that is there already:
# Debian packages (as root, or through sudo) and a Python venv in .venv. Says what it does.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(
    build-essential pkg-config          # C parts of SQLite and ring
    libtss2-dev libssl-dev              # the TPM software stack, for hsm; OpenSSL, for its tests
    libtss2-tcti-device0                # /dev/tpmrm0; loaded at run time, so no linker asks for it
    libtss2-tcti-swtpm0                 # swtpm, likewise
    libdbus-1-dev                       # BlueZ through btleplug
    libsystemd-dev                      # readiness and watchdog
    swtpm swtpm-tools                   # a TPM that is a TPM, and a vendor that certifies it
    tpm2-tools tpm2-openssl python3-tpm2-pytss   # second opinions on it
    dbus                                # the private bus of the BlueZ stand-in
    socat                               # a serial cable without a serial port
    python3 python3-venv                # pymodbus
)

missing=()
for package in "${PACKAGES[@]}"; do
    state=$(dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null || true)
    [ "$state" = "install ok installed" ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "setup: installing ${missing[*]}"
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || {
            echo "setup: error: not root and no sudo" >&2
            echo "  do: as root: apt-get install ${missing[*]}" >&2
            exit 1
        }
        as_root=(sudo)
    fi
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

wanted=$(sha256sum demo/python/requirements.txt)
if [ "$(cat .venv/installed 2>/dev/null || true)" != "$wanted" ]; then
    echo "setup: making .venv with $(grep -c '^[a-z]' demo/python/requirements.txt) Python packages"
    rm -rf .venv
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check -r demo/python/requirements.txt
    echo "$wanted" >.venv/installed
fi

command -v cargo >/dev/null || {
    echo "setup: error: no Rust toolchain" >&2
    echo "  do: install Rust 1.90 or newer, https://rustup.rs" >&2
    exit 1
}
echo "setup: all there"
