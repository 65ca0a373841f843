-- Readings of all gateways, and how far each has delivered: both change in one transaction, so a
-- batch that is sent again is never stored again. Everything a program needs to read is in
-- `readings`; the other tables prove where it came from.

CREATE TABLE epoch (
    id         INTEGER PRIMARY KEY,
    gateway    BLOB NOT NULL,           -- fingerprint of the identity key
    epoch_id   BLOB NOT NULL UNIQUE,
    class      INTEGER NOT NULL,
    chain_id   BLOB NOT NULL,
    idx        INTEGER NOT NULL,        -- place in the chain
    run_id     BLOB NOT NULL,
    header     BLOB NOT NULL,           -- as signed: the evidence
    adopted    INTEGER NOT NULL,        -- found on disk by a later run, not witnessed
    next       INTEGER NOT NULL DEFAULT 0, -- every number below is committed or declared gone
    last       INTEGER,                 -- how many batches it has, once the next epoch's header says it
    head       BLOB                     -- hash of its last batch, likewise
) STRICT;
CREATE INDEX epoch_of_chain ON epoch (gateway, chain_id, class, idx);

CREATE TABLE batch (
    epoch      INTEGER NOT NULL REFERENCES epoch,
    number     INTEGER NOT NULL,
    prev       BLOB NOT NULL,           -- protocol.md 3.2: C[number - 1], as sealed
    chain      BLOB NOT NULL,           -- C[number]
    ciphertext BLOB NOT NULL,           -- SHA-256
    PRIMARY KEY (epoch, number)
) STRICT, WITHOUT ROWID;

-- What a gateway says it holds no more: numbers first..last of an epoch.
CREATE TABLE gone (
    epoch      INTEGER NOT NULL REFERENCES epoch,
    first      INTEGER NOT NULL,
    last       INTEGER NOT NULL,
    PRIMARY KEY (epoch, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE readings (
    epoch      INTEGER NOT NULL REFERENCES epoch,
    number     INTEGER NOT NULL,
    row        INTEGER NOT NULL,
    gateway    TEXT NOT NULL,           -- its name when this was received
    sensor     TEXT NOT NULL,
    channel    TEXT NOT NULL,
    value      ANY,                     -- INTEGER, REAL, TEXT, BLOB; a boolean is 0 or 1
    exact      TEXT,                    -- a decimal, digit by digit
    unit       TEXT,                    -- IANA SenML units registry
    quality    TEXT NOT NULL,
    time_ms    INTEGER NOT NULL,        -- since 1970, by the gateway's clock
    clock      TEXT NOT NULL,           -- how far that clock is to be trusted
    boottime_ms INTEGER NOT NULL,
    run_id     BLOB NOT NULL,
    sensor_number INTEGER NOT NULL,
    sequence   INTEGER NOT NULL,        -- counts from 0 for each sensor in a run
    PRIMARY KEY (epoch, number, row)
) STRICT, WITHOUT ROWID;
CREATE INDEX readings_by_time ON readings (gateway, sensor, channel, time_ms);
CREATE INDEX readings_by_sequence ON readings (run_id, sensor_number, sequence);

CREATE TABLE ledger (
    gateway    BLOB NOT NULL,
    chain_id   BLOB NOT NULL,
    id         INTEGER NOT NULL,
    reason     TEXT NOT NULL,
    from_ms    INTEGER NOT NULL,
    until_ms   INTEGER NOT NULL,
    readings   INTEGER NOT NULL,
    PRIMARY KEY (gateway, chain_id, id)
) STRICT, WITHOUT ROWID;

-- The numbers that an entry explains.
CREATE TABLE ledger_tally (
    gateway    BLOB NOT NULL,
    chain_id   BLOB NOT NULL,
    id         INTEGER NOT NULL,
    run_id     BLOB NOT NULL,
    sensor_number INTEGER NOT NULL,
    first      INTEGER NOT NULL,
    last       INTEGER NOT NULL,
    readings   INTEGER NOT NULL,
    sensor     TEXT                     -- its name, if the entry says it
) STRICT;

-- The batches that an entry explains: numbers first..last of an epoch.
CREATE TABLE ledger_batches (
    gateway    BLOB NOT NULL,
    chain_id   BLOB NOT NULL,
    id         INTEGER NOT NULL,
    epoch_id   BLOB NOT NULL,
    first      INTEGER NOT NULL,
    last       INTEGER NOT NULL
) STRICT;
CREATE INDEX ledger_batches_of_epoch ON ledger_batches (gateway, epoch_id);

-- The sensors of a run, and where their numbers ended if it ended cleanly.
CREATE TABLE run (
    gateway    BLOB NOT NULL,
    run_id     BLOB NOT NULL,
    sensor_number INTEGER NOT NULL,
    sensor     TEXT,
    last       INTEGER,
    PRIMARY KEY (gateway, run_id, sensor_number)
) STRICT, WITHOUT ROWID;
