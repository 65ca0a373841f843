//! The readings as they arrive at the service.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    time::Duration,
};

use comfy_table::{Table, presets};
use demo::accounts;
use tokio::time::{Instant, interval};

/// Shows the newest reading of each channel for a while: redrawn each second on a terminal, else
/// once at the end.
pub(crate) async fn watch(readings: &Path, during: Duration) -> anyhow::Result<()> {
    let redraw = io::stdout().is_terminal();
    let end = Instant::now() + during;
    let mut ticks = interval(Duration::from_secs(1));
    let mut lines = 0;
    while Instant::now() < end {
        ticks.tick().await;
        if redraw {
            lines = draw(readings, lines)?;
        }
    }
    if !redraw {
        draw(readings, 0)?;
    }
    Ok(())
}

/// Draws the table over the last one, which had so many lines; returns its own.
fn draw(readings: &Path, lines_before: usize) -> anyhow::Result<usize> {
    let database = accounts::open(readings)?;
    // SQLite takes the other columns from the row that has the maximum.
    let mut statement = database.prepare(
        "SELECT sensor, channel, coalesce(exact, value, '-'), coalesce(unit, ''), count(*),
                max(time_ms), strftime('%H:%M:%f', time_ms / 1000.0, 'unixepoch')
         FROM readings GROUP BY sensor, channel ORDER BY sensor, channel",
    )?;
    let mut rows = statement.query([])?;
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "SENSOR",
        "CHANNEL",
        "LAST VALUE",
        "READINGS",
        "TAKEN AT",
    ]);
    while let Some(row) = rows.next()? {
        let value = match row.get(2)? {
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Real(number) => number.to_string(),
            rusqlite::types::Value::Text(text) => text,
            rusqlite::types::Value::Null | rusqlite::types::Value::Blob(_) => "-".to_owned(),
        };
        table.add_row([
            row.get(0)?,
            row.get(1)?,
            format!("{value} {}", row.get::<_, String>(3)?),
            row.get::<_, u64>(4)?.to_string(),
            row.get(6)?,
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    let mut out = io::stdout().lock();
    if 0 < lines_before {
        // ECMA-48: cursor up, then erase to the end of the screen.
        write!(out, "\u{1b}[{lines_before}A\u{1b}[J")?;
    }
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(text.lines().count())
}
