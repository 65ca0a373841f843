-- What version 2 adds to version 1.

-- What the header says of the epoch before: its id, how many batches, and the last one's hash.
ALTER TABLE epoch ADD COLUMN before_id BLOB;
ALTER TABLE epoch ADD COLUMN before_count INTEGER;
ALTER TABLE epoch ADD COLUMN before_head BLOB;

-- Chains that a session of their gateway announced. By hand, others wait in quarantine.
CREATE TABLE announced (
    gateway    BLOB NOT NULL,
    chain_id   BLOB NOT NULL,
    PRIMARY KEY (gateway, chain_id)
) STRICT, WITHOUT ROWID;
INSERT INTO announced SELECT DISTINCT gateway, chain_id FROM epoch;

-- What is kept, sealed as it came, and not believed. Opening the file again takes it out, once the
-- reason is gone.
CREATE TABLE quarantine (
    epoch_id   BLOB NOT NULL,
    number     INTEGER NOT NULL,        -- of the batch; -1: the epoch's header
    hash       BLOB NOT NULL,           -- SHA-256 of the header, or of the batch's ciphertext
    gateway    BLOB NOT NULL,
    reason     TEXT NOT NULL,           -- suspended revoked unannounced conflict
    time_ms    INTEGER NOT NULL,        -- when it came, by the service's clock
    sealed     BLOB NOT NULL,
    PRIMARY KEY (epoch_id, number, hash)
) STRICT;

-- Numbers that a gateway holds no more and that no ledger explains: it had our ack for them, so they
-- were lost here, by restoring an old copy of this file for example.
CREATE VIEW lost_at_service AS
    SELECT epoch.gateway, epoch.epoch_id, gone.first, gone.last FROM gone JOIN epoch ON epoch.id = gone.epoch
    WHERE NOT EXISTS (SELECT 1 FROM ledger_batches AS explained
        WHERE explained.gateway = epoch.gateway AND explained.epoch_id = epoch.epoch_id
        AND explained.first <= gone.first AND gone.last <= explained.last);
