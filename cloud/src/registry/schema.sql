-- Who may deliver, and which tickets are out.

CREATE TABLE gateway (
    fingerprint BLOB PRIMARY KEY,       -- of the identity key
    name        TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('enrolled', 'suspended', 'retired', 'revoked')),
    identity    BLOB NOT NULL,          -- public keys, 65 bytes
    channel     BLOB NOT NULL UNIQUE,
    attestation BLOB NOT NULL UNIQUE,
    endorsement BLOB NOT NULL,          -- TPMT_PUBLIC
    identity_name BLOB NOT NULL,        -- TPM Names
    channel_name  BLOB NOT NULL,
    attestation_name BLOB NOT NULL,
    ticket      BLOB NOT NULL,
    labels      TEXT NOT NULL,          -- key=value, sorted, one a line
    enrolled_ms INTEGER NOT NULL,
    via         TEXT,                   -- of the newest session
    session_ms  INTEGER,
    ack_ms      INTEGER
) STRICT, WITHOUT ROWID;
-- A name belongs to one gateway at a time; replaced and revoked ones keep theirs as history.
CREATE UNIQUE INDEX gateway_name ON gateway (name) WHERE state IN ('enrolled', 'suspended');
-- One endorsement key is one gateway; a TPM can have several.
CREATE UNIQUE INDEX gateway_endorsement ON gateway (endorsement)
    WHERE state IN ('enrolled', 'suspended');

CREATE TABLE ticket (
    id          BLOB PRIMARY KEY,
    key         BLOB NOT NULL,          -- M(secret, "gatewayd/1 ticket"); the secret is not kept
    name        TEXT NOT NULL,
    labels      TEXT NOT NULL,
    expires_ms  INTEGER NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('new', 'claimed', 'used', 'burnt')),
    claimed_by  BLOB,                   -- the EK of the first valid proof
    used_ms     INTEGER,
    wrong_proofs INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- Append-only.
CREATE TABLE audit (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    time_ms     INTEGER NOT NULL,
    event       TEXT NOT NULL,
    name        TEXT,
    fingerprint BLOB,
    detail      TEXT NOT NULL
) STRICT;
