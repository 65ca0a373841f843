//! What is in a batch, row by row.

use rusqlite::{Transaction, named_params, params, types::Value as Sql};
use wire::{
    ClockState, Reading, Value,
    batch::{LedgerEntry, RunEvent},
};

use super::{EpochRow, OpenedBatch};

/// Inserts a batch with everything in it.
pub(super) fn insert(
    transaction: &Transaction<'_>,
    epoch: &EpochRow,
    batch: &OpenedBatch<'_>,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO batch (epoch, number, prev, chain, ciphertext) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            epoch.id,
            batch.number,
            batch.prev,
            batch.chain,
            batch.ciphertext
        ])?;
    for (row, reading) in (0_i64..).zip(&batch.content.readings) {
        insert_reading(transaction, epoch, (batch, row), reading)?;
    }
    for entry in &batch.content.ledger {
        insert_ledger(transaction, &epoch.gateway, entry)?;
    }
    for event in &batch.content.run_events {
        insert_run_event(transaction, &epoch.gateway, event)?;
    }
    Ok(())
}

fn insert_reading(
    transaction: &Transaction<'_>,
    epoch: &EpochRow,
    (batch, row): (&OpenedBatch<'_>, i64),
    reading: &Reading,
) -> rusqlite::Result<()> {
    let measurement = &reading.measurement;
    let (value, exact) = sql_value(&measurement.value);
    transaction
        .prepare_cached(
            "INSERT INTO readings VALUES (:epoch, :number, :row, :gateway, :sensor, :channel,
                :value, :exact, :unit, :quality, :time_ms, :clock, :boottime_ms, :run_id,
                :sensor_number, :sequence)",
        )?
        .execute(named_params! {
            ":epoch": epoch.id,
            ":number": batch.number,
            ":row": row,
            ":gateway": batch.gateway_name,
            ":sensor": reading.sensor,
            ":channel": measurement.channel,
            ":value": value,
            ":exact": exact,
            ":unit": measurement.unit.map(|unit| unit.as_str()),
            ":quality": measurement.quality.to_string(),
            ":time_ms": reading.time.wall_ms,
            ":clock": clock_word(reading.time.clock),
            ":boottime_ms": reading.time.boottime_ms,
            ":run_id": epoch.run_id,
            ":sensor_number": reading.sensor_number,
            ":sequence": reading.sequence,
        })?;
    Ok(())
}

fn insert_ledger(
    transaction: &Transaction<'_>,
    gateway: &[u8; 32],
    entry: &LedgerEntry,
) -> rusqlite::Result<()> {
    // A peer may claim any numbers; their sum is only shown.
    let readings = entry
        .tallies
        .iter()
        .fold(0, |sum: u64, tally| sum.saturating_add(tally.count));
    let new = transaction
        .prepare_cached(
            "INSERT INTO ledger VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            gateway,
            entry.chain_id,
            entry.id,
            entry.reason.to_string(),
            entry.from_ms,
            entry.until_ms,
            readings,
        ])?;
    if new == 0 {
        return Ok(());
    }
    let mut insert = transaction
        .prepare_cached("INSERT INTO ledger_tally VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    for tally in &entry.tallies {
        let mut names = entry.names.iter();
        let name = names.find(|(number, _)| *number == tally.sensor_number);
        insert.execute(params![
            gateway,
            entry.chain_id,
            entry.id,
            tally.run_id,
            tally.sensor_number,
            tally.first,
            tally.last,
            tally.count,
            name.map(|(_, name)| name),
        ])?;
    }
    let mut insert =
        transaction.prepare_cached("INSERT INTO ledger_batches VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    for lost in &entry.batches {
        insert.execute(params![
            gateway,
            entry.chain_id,
            entry.id,
            lost.epoch_id,
            lost.first,
            lost.last,
        ])?;
    }
    Ok(())
}

fn insert_run_event(
    transaction: &Transaction<'_>,
    gateway: &[u8; 32],
    event: &RunEvent,
) -> rusqlite::Result<()> {
    match event {
        RunEvent::Start { run_id, sensors } => {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO run (gateway, run_id, sensor_number, sensor) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET sensor = excluded.sensor",
            )?;
            for (number, sensor) in sensors {
                insert.execute(params![gateway, run_id, number, sensor])?;
            }
        }
        RunEvent::End { run_id, last } => {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO run (gateway, run_id, sensor_number, last) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET last = excluded.last",
            )?;
            for (number, last) in last {
                insert.execute(params![gateway, run_id, number, last])?;
            }
        }
    }
    Ok(())
}

/// As SQLite has it, and for a decimal also digit by digit.
fn sql_value(value: &Value) -> (Sql, Option<String>) {
    match value {
        Value::Null => (Sql::Null, None),
        Value::Bool(bit) => (Sql::Integer((*bit).into()), None),
        Value::Integer(number) => (Sql::Integer(*number), None),
        Value::Decimal(number) => (Sql::Real(number.to_f64()), Some(number.to_string())),
        Value::Float(number) => (Sql::Real(*number), None),
        Value::Text(text) => (Sql::Text(text.clone()), None),
        Value::Bytes(bytes) => (Sql::Blob(bytes.clone()), None),
    }
}

fn clock_word(state: ClockState) -> &'static str {
    match state {
        ClockState::Synchronised => "synchronised",
        ClockState::Unsynchronised => "unsynchronised",
        ClockState::Corrected => "corrected",
    }
}
