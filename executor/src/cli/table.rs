//! The state of a set as a table for people.

use std::fmt::Write;

use crate::control::protocol::Status;

/// Lines for `quorate status`.
pub fn status(status: &Status, with_layout: bool) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{}: {}, {} of {} replicas running, {} must agree; up {:.1} s (pid {})",
        status.name,
        status.state,
        status.running,
        status.size,
        status.quorum,
        status.uptime_ms as f64 / 1000.0,
        status.pid
    );
    if let Some(why) = &status.no_quorum {
        let _ = writeln!(text, "nothing is released: {why}");
    }
    for published in &status.published {
        let _ = writeln!(text, "published {published}");
    }
    let _ = writeln!(
        text,
        "{} boundaries, {} ballots, {} bytes voted; {} outputs with {} bytes released; {} connections",
        status.boundaries,
        status.ballots,
        status.bytes_voted,
        status.releases,
        status.bytes_released,
        status.connections
    );
    for disk in &status.disks {
        let _ = writeln!(
            text,
            "disk {} ({}): {} reads ({} bytes), {} writes ({} bytes), {} flushes of {} us; {} bytes not written yet, {} bytes of old versions",
            disk.disk,
            disk.backend,
            disk.reads,
            disk.bytes_read,
            disk.writes,
            disk.bytes_written,
            disk.flushes,
            disk.flush_mean_us,
            disk.unwritten_bytes,
            disk.version_bytes + disk.spilled_bytes
        );
        if let Some(why) = &disk.failure {
            let _ = writeln!(text, "disk {} failed: {why}", disk.disk);
        }
    }
    let recovery = &status.recovery;
    if recovery.enabled {
        let by = &recovery.recoveries;
        let _ = writeln!(
            text,
            "came back: {} by checkpoint, {} by an older one, {} by replay, {} by clone; {} steps failed; journal kept from boundary {} ({} bytes)",
            by.checkpoint,
            by.older,
            by.replay,
            by.clone,
            recovery.failed_steps,
            recovery.history_from,
            recovery.history_bytes
        );
    }
    let _ = writeln!(text, "fingerprint {}", status.fingerprint);
    let _ = writeln!(text, "layout {}, seed {}", status.layout_mode, status.seed);
    if status.console_dropped > 0 {
        let _ = writeln!(
            text,
            "{} bytes of console output were dropped",
            status.console_dropped
        );
    }

    let mut rows = vec![
        [
            "replica",
            "state",
            "boundary",
            "lag",
            "kernel at",
            "restarts",
            "outputs",
        ]
        .map(str::to_owned),
    ];
    rows.extend(status.replicas.iter().map(|replica| {
        [
            replica.replica.to_string(),
            replica.state.clone(),
            replica.boundary.to_string(),
            replica.lag.to_string(),
            replica.layout.get("kernel").cloned().unwrap_or_default(),
            replica.restarts.to_string(),
            replica.outputs.to_string(),
        ]
    }));
    text.push('\n');
    text.push_str(&align(&rows));
    for replica in &status.replicas {
        if let Some(reason) = &replica.stopped {
            let _ = writeln!(text, "replica {} stopped: {reason}", replica.replica);
        }
        for fault in &replica.injected {
            let _ = writeln!(
                text,
                "replica {} injected at boundary {}: {}: {}",
                replica.replica, fault.boundary, fault.detail, fault.effect
            );
        }
    }
    if with_layout {
        text.push('\n');
        text.push_str(&layout(status));
    }
    text
}

/// A column per replica, a row per region.
fn layout(status: &Status) -> String {
    let header = status
        .replicas
        .iter()
        .map(|replica| format!("replica {}", replica.replica));
    let mut rows = vec![
        std::iter::once("region".to_owned())
            .chain(header)
            .collect::<Vec<_>>(),
    ];
    for region in crate::machine::REGIONS {
        let starts = status.replicas.iter().map(|replica| {
            replica
                .layout
                .get(region)
                .cloned()
                .unwrap_or_else(|| "-".to_owned())
        });
        rows.push(std::iter::once(region.to_owned()).chain(starts).collect());
    }
    align(&rows)
}

/// Pads the cells of each column to the same width.
fn align<R: AsRef<[String]>>(rows: &[R]) -> String {
    let columns = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.as_ref().get(column))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row
            .as_ref()
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            ["a".to_owned(), "bbb".to_owned(), "c".to_owned()],
            ["aaaa".into(), "b".into(), "c".into()],
        ];
        assert_eq!(align(&rows), "a     bbb  c\naaaa  b    c\n");
    }
}
