"""Makes seal.txt: keys, a statement and a whole epoch, by software that is not ours.

    python3 -m venv venv && venv/bin/pip install cbor2 cryptography pycose
    venv/bin/python seal.py X-WING-TEST-VECTORS.json > seal.txt

CBOR is cbor2's, COSE pycose's, ES256 and ChaCha20-Poly1305 are those of cryptography (OpenSSL).
The X-Wing shared secrets are those of the draft's own test vectors, spec/test-vectors.json of
github.com/dconnolly/draft-connolly-cfrg-xwing-kem; the key schedule of HPKE is written out below
from RFC 9180, 5.1. Made with cbor2 6.3.0, cryptography 50.0.2, pycose 1.1.0.
"""

import base64
import hashlib
import hmac
import json
import sys

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pycose.algorithms import Es256
from pycose.headers import Algorithm
from pycose.messages import Sign1Message

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def show(name, value):
    print(name, "=", value.hex() if isinstance(value, bytes) else value)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def mac(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


def deterministic(item):
    return cbor2.dumps(item, canonical=True)


def p256(seed):
    scalar = int.from_bytes(sha256(seed), "big") % ORDER
    key = ec.derive_private_key(scalar, ec.SECP256R1())
    point = key.public_key().public_numbers()
    public = b"\x04" + point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")
    return key, scalar.to_bytes(32, "big"), public


def es256(key, message, high=False):
    """RFC 6979, so that the signature is the same each time."""
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    r, s = decode_dss_signature(key.sign(message, algorithm))
    if (ORDER // 2 < s) != high:
        s = ORDER - s
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def sign1(key, payload, aad, high=False):
    message = Sign1Message(phdr={Algorithm: Es256}, uhdr={}, payload=payload)
    message.external_aad = aad
    to_be_signed = message._create_sig_structure()
    signature = es256(key, to_be_signed, high)
    return deterministic([bytes.fromhex("a10126"), {}, payload, signature]), to_be_signed


def fingerprint(kind, key):
    return sha256(b"gatewayd/1 key\0", bytes([kind]), key)


def text(prefix, name):
    return prefix + "-" + base64.b32encode(name).decode().rstrip("=").lower()


def hpke_exporter(shared_secret, info):
    """RFC 9180, 5.1: base mode, KEM 0x647a, HKDF-SHA256 (1), export-only (0xffff)."""
    suite = b"HPKE" + bytes.fromhex("647a0001ffff")

    def extract(salt, label, ikm):
        return mac(salt or bytes(32), b"HPKE-v1" + suite + label + ikm)

    def expand(key, label, info, length):
        info = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
        assert length <= 32
        return mac(key, info + b"\x01")[:length]

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared_secret, b"secret", b"")
    exporter = expand(secret, b"exp", context, 32)
    return lambda label: expand(exporter, b"sec", label, 32)


xwing = json.load(open(sys.argv[1]))
seed, record, ct, ss, randomness = (
    bytes.fromhex(xwing[0][name]) for name in ("sk", "pk", "ct", "ss", "eseed")
)
second_record = bytes.fromhex(xwing[1]["pk"])
show("xwing_seed", seed)
show("xwing_public", record)
show("xwing_second_public", second_record)
show("xwing_randomness", randomness)

identity, identity_scalar, identity_public = p256(b"gateway identity")
service, service_scalar, service_public = p256(b"service identity")
_, _, channel_public = p256(b"service channel")
_, _, online_public = p256(b"service online")
show("identity_scalar", identity_scalar)
show("identity_public", identity_public)
show("service_scalar", service_scalar)
show("service_public", service_public)
show("channel_public", channel_public)
show("online_public", online_public)
for kind, prefix in enumerate(["gi", "gc", "ak", "sv", "rk", "ok"], 1):
    show("fingerprint_" + prefix, text(prefix, fingerprint(kind, identity_public)))
show("message_signature", es256(identity, b"message"))
show("message_signature_high", es256(identity, b"message", high=True))

statement = deterministic({
    1: service_public,
    2: 7,
    3: [channel_public],
    4: [record, second_record],
    5: [[online_public, 3]],
})
show("statement", sign1(service, statement, b"gatewayd/1 statement")[0])

gateway_name = fingerprint(1, identity_public)
service_name = fingerprint(4, service_public)
terms = {
    1: 1,
    2: gateway_name,
    3: service_name,
    4: 1,
    5: bytes(range(0x50, 0x60)),
    6: 1000,
    7: bytes(range(0x70, 0x80)),
    8: [bytes([0x81] * 32), 65536, bytes([0x83] * 32), False],
    9: fingerprint(5, record),
    10: [bytes(range(0xA0, 0xB0)), 123456789, -1, 1],
}
info = b"gatewayd/1 epoch\0" + sha256(deterministic(terms))
export = hpke_exporter(ss, info)
chain_key = export(b"gatewayd/1 batch chain\0")
payload = deterministic({**terms, 11: ct, 12: export(b"gatewayd/1 commit\0")})
epoch_id = sha256(b"gatewayd/1 epoch id\0", payload)
show("hpke_info", info)
show("header_payload", payload)
show("epoch_id", epoch_id)
header, to_be_signed = sign1(identity, payload, b"gatewayd/1 epoch")
show("to_be_signed", to_be_signed)
show("header", header)
show("header_high_s", sign1(identity, payload, b"gatewayd/1 epoch", high=True)[0])
show("header_adopted", sign1(identity, payload, b"gatewayd/1 epoch adopted")[0])

chain = epoch_id
for number in range(3):
    key = mac(chain_key, b"\x01")
    show(f"chain_key_{number}", chain_key)
    show(f"batch_key_{number}", key)
    plaintext = b"batch %d" % number
    nonce = bytes(4) + number.to_bytes(8, "big")
    aad = b"gatewayd/1 batch\0" + epoch_id + number.to_bytes(8, "big") + chain
    ciphertext = ChaCha20Poly1305(key).encrypt(nonce, plaintext, aad)
    show(f"aad_{number}", aad)
    show(f"batch_{number}", deterministic([epoch_id, number, chain, ciphertext]))
    chain = sha256(
        b"gatewayd/1 chain\0", chain, number.to_bytes(8, "big"), sha256(ciphertext)
    )
    show(f"chain_{number}", chain)
    chain_key = mac(chain_key, b"\x02")
