//! R10: what happens at each bound. Over each backend.

use super::*;

fn each(test: impl Fn(&Bench, DiskSpec, Backend)) {
    for backend in backends() {
        let bench = Bench::new(4 << 20);
        test(&bench, bench.spec(3), backend);
    }
}

/// Replicas 0 and 1 do it, and it is released; replica 2 is behind.
fn two_of_three(disk: &Disk, request: &BlockRequest) {
    disk.submit(0, request).unwrap();
    disk.submit(1, request).unwrap();
    disk.release(request.clone());
}

#[test]
fn old_versions_go_to_the_spill_file_and_are_forgotten() {
    each(|bench, mut spec, backend| {
        spec.bounds.version_bytes = 256 << 10;
        let disk = bench.open(spec, backend);
        // 2 MiB of contents that all differ, then 2 MiB over them.
        for seq in 0..256 {
            pass(&disk, 3, &write(seq, seq * 16, seq as u8, 16));
        }
        for seq in 256..512 {
            two_of_three(&disk, &write(seq, (seq - 256) * 16, 0xff, 16));
        }
        two_of_three(&disk, &flush(512));
        wait_for("flush", || disk.has_due(0));
        let stats = disk.stats();
        assert!(stats.spilled_bytes >= 1 << 20, "{stats:?}");
        assert!(stats.version_peak <= (256 << 10) + (1 << 20), "{stats:?}");
        assert_eq!(bench.bytes()[..2 << 20], vec![0xff; 2 << 20]);
        // No file has a name: nothing is left over, however this ends.
        assert_eq!(
            std::fs::read_dir(bench.directory.path()).unwrap().count(),
            1
        );
        // Replica 2 comes along.
        for seq in 256..512u64 {
            disk.submit(2, &write(seq, (seq - 256) * 16, 0xff, 16))
                .unwrap();
        }
        disk.submit(2, &flush(512)).unwrap();
        wait_for("forgotten", || {
            let stats = disk.stats();
            stats.spilled_bytes == 0 && stats.version_bytes == 0
        });
        disk.close().unwrap();
    });
}

#[test]
fn a_slow_replica_reads_from_the_spill_file() {
    each(|bench, mut spec, backend| {
        spec.bounds.version_bytes = 64 << 10;
        let disk = bench.open(spec, backend);
        for seq in 0..64 {
            pass(&disk, 3, &write(seq, seq * 16, seq as u8 + 1, 16));
        }
        // All ask to read; 0 and 1 overwrite meanwhile, 2 has not read yet.
        for seq in 64..128 {
            two_of_three(&disk, &read(seq, (seq - 64) * 16, 16));
        }
        for seq in 128..192 {
            two_of_three(&disk, &write(seq, (seq - 128) * 16, 0xff, 16));
        }
        two_of_three(&disk, &flush(192));
        wait_for("flush", || {
            disk.due(0).iter().any(|c| c.kind == Waiting::Flush)
        });
        assert!(disk.stats().spilled_bytes > 0);
        for seq in 64..128u64 {
            disk.submit(2, &read(seq, (seq - 64) * 16, 16)).unwrap();
            let byte = (seq - 64) as u8 + 1;
            assert_eq!(fetch(&disk, 2, seq), vec![byte; 8192], "R6");
        }
        disk.close().unwrap();
    });
}

#[test]
fn when_the_spill_file_is_full_the_fast_wait_for_the_slowest() {
    each(|bench, mut spec, backend| {
        spec.bounds.version_bytes = 64 << 10;
        spec.bounds.spill_bytes = 64 << 10;
        spec.bounds.unwritten_bytes = 256 << 10;
        let disk = bench.open(spec, backend);
        for seq in 0..64 {
            pass(&disk, 3, &write(seq, seq * 16, 1, 16));
        }
        // Replica 2 is at 64. The others may get so far and no further: 64 + 64 KiB of versions, 256 KiB of writes.
        let far = disk.clone();
        let fast = std::thread::spawn(move || {
            for seq in 64..400 {
                two_of_three(&far, &write(seq, (seq % 64) * 16, 2, 16));
            }
        });
        wait_for("the fast one waits", || disk.stats().waits > 0);
        let stats = disk.stats();
        assert!(
            stats.unwritten_peak <= (256 << 10) + (64 << 10),
            "{stats:?}"
        );
        assert!(stats.version_peak <= (64 << 10) + 8192, "{stats:?}");
        assert!(stats.spilled_peak <= 64 << 10, "{stats:?}");
        assert!(!fast.is_finished());
        // The slowest goes on, never waiting itself.
        for seq in 64..100 {
            disk.submit(2, &write(seq, (seq % 64) * 16, 2, 16)).unwrap();
        }
        disk.retire(2);
        fast.join().unwrap();
        disk.close().unwrap();
        assert_eq!(bench.bytes()[..512 << 10], vec![2; 512 << 10]);
    });
}

#[test]
fn reads_beyond_the_bound_wait_for_those_before_them() {
    each(|bench, mut spec, backend| {
        spec.bounds.read_bytes = 8192;
        spec.bounds.outstanding = 8;
        let disk = bench.open(spec, backend);
        for seq in 0..8 {
            disk.submit(0, &read(seq, 0, 8)).unwrap();
        }
        let error = disk.submit(0, &read(8, 0, 8)).unwrap_err().to_string();
        assert!(error.contains("outstanding"), "{error}");
        wait_for("two", || disk.due(0).len() == 2);
        // One that waits is begun when the entry says that somebody else was faster.
        assert_eq!(fetch(&disk, 0, 5).len(), 4096);
        for seq in [0, 1, 2, 3, 4, 6, 7] {
            assert_eq!(fetch(&disk, 0, seq).len(), 4096);
        }
        disk.close().unwrap();
    });
}

#[test]
fn a_discard_of_a_gigabyte_keeps_the_past_in_pieces() {
    let bench = Bench::new(2 << 30);
    for backend in backends() {
        let mut spec = bench.spec(3);
        spec.bounds.version_bytes = 2 << 20;
        let disk = bench.open(spec, backend);
        for (seq, at) in [(0, 5), (1, 1 << 20), (2, (1 << 21) - 16)] {
            pass(&disk, 3, &write(seq, at, 7, 16));
        }
        let (sector, sectors) = (0, 1 << 21);
        let discard = request(3, BlockOp::Discard { sector, sectors });
        two_of_three(&disk, &discard);
        two_of_three(&disk, &flush(4));
        // Where nothing was, zeroes are kept, which cost little; but not nothing: it takes the slowest to go on.
        wait_for("pieces", || disk.stats().versions > 2 << 20 >> 12);
        disk.submit(2, &discard).unwrap();
        disk.submit(2, &flush(4)).unwrap();
        wait_for("flush", || disk.has_due(2));
        disk.submit(2, &read(5, 0, 64)).unwrap();
        assert_eq!(fetch(&disk, 2, 5), vec![0; 64 * 512]);
        disk.close().unwrap();
    }
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(bench.path()).unwrap();
    assert!(meta.blocks() < 1024, "the space is given back");
}
