-- The spool's file, format 2. One connection at a time; every change is one transaction.

-- One row: what was born with the file.
CREATE TABLE file (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    chain_id BLOB NOT NULL,
    -- Wall time in ms of the last change to the damaged file that this one replaces.
    damaged_ms INTEGER
) STRICT;

-- A service and a class, with its newest epoch and its totals. The totals change in the
-- transaction of what they count, so nobody ever has to count rows.
CREATE TABLE lanes (
    id INTEGER PRIMARY KEY,
    service BLOB NOT NULL,
    class INTEGER NOT NULL,
    newest INTEGER,                                -- epochs.id
    count INTEGER NOT NULL DEFAULT 0,              -- of the newest epoch: highest number + 1
    head BLOB,                                     -- of the newest epoch: chain hash
    clean INTEGER NOT NULL DEFAULT 0,              -- of the newest epoch: closed in order
    batches INTEGER NOT NULL DEFAULT 0,            -- held
    bytes INTEGER NOT NULL DEFAULT 0,              -- held
    readings INTEGER NOT NULL DEFAULT 0,           -- held
    appended_batches INTEGER NOT NULL DEFAULT 0,   -- ever
    appended_readings INTEGER NOT NULL DEFAULT 0,  -- ever
    acked_readings INTEGER NOT NULL DEFAULT 0,     -- ever
    lost_readings INTEGER NOT NULL DEFAULT 0,      -- ever
    UNIQUE (service, class)
) STRICT;

-- An epoch that still has batches here, or is the newest of its lane. Ids rise, so within a lane
-- they are in the order of the chain; the newest is never forgotten, so no id comes twice.
CREATE TABLE epochs (
    id INTEGER PRIMARY KEY,
    lane INTEGER NOT NULL REFERENCES lanes (id),
    epoch_id BLOB NOT NULL UNIQUE,
    chain_index INTEGER NOT NULL,
    signed INTEGER NOT NULL DEFAULT 0,
    set_aside INTEGER NOT NULL DEFAULT 0,
    header BLOB NOT NULL,
    exported INTEGER NOT NULL DEFAULT 0            -- highest number carried by hand + 1
) STRICT;
CREATE INDEX epochs_of_lane ON epochs (lane);
CREATE INDEX epochs_unsigned ON epochs (id) WHERE signed = 0 AND set_aside = 0;

-- key = epochs.id * 65536 + number: the order of the chain is the order of the tree, and an
-- append touches the last page of its epoch and no index. Small columns first, so that reading
-- them leaves the pages of the sealed bytes alone.
CREATE TABLE batches (
    key INTEGER PRIMARY KEY,
    arrival INTEGER NOT NULL,                      -- counts appends over all lanes
    readings INTEGER NOT NULL,
    from_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    chain BLOB NOT NULL,
    tallies BLOB NOT NULL,
    bytes BLOB NOT NULL
) STRICT;

-- A loss that its service has not acknowledged yet. `sealed` = 0: open, grows with further losses
-- of the same lane for the same reason. 1: was handed out to be sealed, is never changed again.
-- `carrier` is the batch it was sealed into; without one it waits to be sealed (again).
-- AUTOINCREMENT, as the receiver tells entries apart by their id for ever.
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    lane INTEGER NOT NULL REFERENCES lanes (id),
    reason INTEGER NOT NULL,
    from_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    sealed INTEGER NOT NULL DEFAULT 0,
    carrier INTEGER                                -- batches.key
) STRICT;
CREATE UNIQUE INDEX ledger_open ON ledger (lane, reason) WHERE sealed = 0;
CREATE INDEX ledger_of_lane ON ledger (lane);
CREATE INDEX ledger_carried ON ledger (carrier) WHERE carrier IS NOT NULL;

CREATE TABLE ledger_tallies (
    entry INTEGER NOT NULL REFERENCES ledger (id) ON DELETE CASCADE,
    sensor_number INTEGER NOT NULL,
    run_id BLOB NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (entry, sensor_number, run_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE ledger_batches (
    entry INTEGER NOT NULL REFERENCES ledger (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    epoch_id BLOB NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (entry, position)
) STRICT, WITHOUT ROWID;

-- Small values of the daemon.
CREATE TABLE kept (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
