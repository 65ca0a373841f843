"""Makes session.txt: a gateway's sessions in both suites, by software that is not ours.

    python3 -m venv venv && venv/bin/pip install cryptography
    venv/bin/python session.py > session.txt

Written once more from docs/protocol.md 2 and the Noise specification, revision 34. P-256, ML-KEM
and the ciphers are those of cryptography (OpenSSL), the hashes those of Python. The KEM's
ciphertext is another one in each run; all else is fixed. Made with cryptography 48.0.0.
"""

import hashlib
import hmac
from cryptography.hazmat.primitives.asymmetric import ec, mlkem
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def sha256(data):
    return hashlib.sha256(data).digest()


def key(label):
    scalar = sha256(b"session vector " + label.encode())
    return ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1()), scalar


def point(private):
    return private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def dh(private, public):
    peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    return private.exchange(ec.ECDH(), peer)


class Cipher:
    """5.1, CipherState."""

    def __init__(self, suite, k):
        self.aead = ChaCha20Poly1305(k) if suite == 1 else AESGCM(k)
        self.order = "little" if suite == 1 else "big"
        self.n = 0

    def encrypt(self, ad, plaintext):
        nonce = bytes(4) + self.n.to_bytes(8, self.order)
        self.n += 1
        return self.aead.encrypt(nonce, plaintext, ad)


class Symmetric:
    """5.2, SymmetricState."""

    def __init__(self, suite):
        self.suite = suite
        self.hash = [hashlib.blake2s, hashlib.sha256][suite - 1]
        name = [b"Noise_XXpsk2_P256_ChaChaPoly_BLAKE2s", b"Noise_XXpsk2_P256_AESGCM_SHA256"][suite - 1]
        self.h = name + bytes(32 - len(name)) if len(name) <= 32 else self.hash(name).digest()
        self.ck = self.h

    def hkdf(self, material, outputs):
        def mac(k, m):
            return hmac.new(k, m, self.hash).digest()

        temp, made = mac(self.ck, material), [b""]
        for i in range(outputs):
            made.append(mac(temp, made[-1] + bytes([i + 1])))
        return made[1:]

    def mix_hash(self, data):
        self.h = self.hash(self.h + data).digest()

    def mix_key(self, material):
        self.ck, k = self.hkdf(material, 2)
        self.cipher = Cipher(self.suite, k)

    def mix_key_and_hash(self, material):
        self.ck, h, k = self.hkdf(material, 3)
        self.mix_hash(h)
        self.cipher = Cipher(self.suite, k)

    def encrypt(self, plaintext):
        ciphertext = self.cipher.encrypt(self.h, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def ephemeral(self, public):
        self.mix_hash(public)
        self.mix_key(public)  # 9.2: in every psk handshake
        return public


def frame(data):
    return len(data).to_bytes(2, "big") + data


def session(suite):
    identity, identity_scalar = key("service identity")
    service, service_scalar = key("service static")
    gateway, gateway_scalar = key("gateway static")
    gateway_e, gateway_e_scalar = key("gateway ephemeral")
    service_e, _ = key("service ephemeral")
    seed = sha256(b"d") + sha256(b"z")
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed).public_key()
    ek = kem.public_bytes_raw()
    shared, ct = kem.encapsulate()

    pin = sha256(b"gatewayd/1 key\0" + bytes([4]) + point(identity))
    preamble = b"GWD1" + bytes([suite, 1, 1, 0]) + pin + bytes(32)
    state = Symmetric(suite)
    state.mix_hash(preamble)
    # -> e
    message_1 = state.ephemeral(point(gateway_e))
    message_1 += state.encrypt(b"\xa2\x01\x59\x04\xa0" + ek + b"\x02\x05")
    # <- e, ee, s, es, psk
    message_2 = state.ephemeral(point(service_e))
    state.mix_key(dh(service_e, point(gateway_e)))
    message_2 += state.encrypt(point(service))
    state.mix_key(dh(service, point(gateway_e)))
    psk = hmac.new(shared, b"gatewayd/1 noise psk\0" + sha256(ek) + sha256(ct), hashlib.sha256).digest()
    state.mix_key_and_hash(psk)
    message_2 += state.encrypt(b"\xa0")
    # -> s, se
    message_3 = state.encrypt(point(gateway))
    state.mix_key(dh(gateway, point(service_e)))
    message_3 += state.encrypt(b"\xa2\x01\x01\x02\x651.2.3")
    up, down = (Cipher(suite, k) for k in state.hkdf(b"", 2))

    return {
        "identity": identity_scalar,
        "service_static": service_scalar,
        "gateway_static": gateway_scalar,
        "gateway_ephemeral": gateway_e_scalar,
        "kem_seed": seed,
        "psk": psk,
        "hello": preamble + frame(message_1),
        "reply": frame(ct + message_2),
        "introduction": frame(message_3),
        "hash": state.h,
        "admission": frame(down.encrypt(b"", b"\x06\xa1\x01\x00")),
        "down": frame(down.encrypt(b"", b"\0downwards")),
        "up": frame(up.encrypt(b"", b"\0upwards")),
        "close": frame(up.encrypt(b"", b"\x01\xa1\x01\x07")),
    }


for suite in (1, 2):
    for name, value in session(suite).items():
        print(f"{name}_{suite} = {value.hex()}")
