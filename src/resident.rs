//! What of the program stays in memory while nothing happens. Starting, cloning and failing over run through several megabytes of
//! code that an idle node does not need again for days; the kernel keeps such pages mapped until memory is short.

use std::fs;

/// Gives the kernel back the program's code pages, of this executable and its libraries. What runs next comes back from the file
/// or the page cache, sixteen pages at a time, at about a microsecond each: for a moment in which nothing is urgent.
///
/// Code is mapped from files, privately, and never written to (the program is position-independent and has no relocations there),
/// so nothing is lost. Without `/proc` this does nothing.
///
/// Not for init: what fences PostgreSQL must run when memory is short and the disk does not answer.
pub fn forget_code() {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else {
        return;
    };
    for (start, end) in maps.lines().filter_map(code) {
        advise::not_needed(start, end - start);
    }
}

/// The addresses of a line of `/proc/self/maps` (proc_pid_maps(5)), if it is code from a file.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let rights = fields.next()?;
    let path = fields.nth(3)?;
    if rights != "r-xp" || !path.starts_with('/') {
        return None;
    }
    let address = |text| usize::from_str_radix(text, 16).ok();
    address(start)
        .zip(address(end))
        .filter(|(start, end)| start < end)
}

#[allow(
    unsafe_code,
    reason = "madvise is unsafe for what MADV_DONTNEED does to memory that was written to; code is not"
)]
mod advise {
    use rustix::mm::{Advice, madvise};

    /// The kernel may refuse (locked memory): then the pages stay, which harms nobody.
    pub(super) fn not_needed(start: usize, length: usize) {
        // SAFETY: `start` and `length` come from a line of /proc/self/maps that says `r-xp` and a file. Pages of a private file
        // mapping that were never written to have the file's content before and after; no library is ever unloaded here.
        let _ = unsafe {
            madvise(
                std::ptr::with_exposed_provenance_mut(start),
                length,
                Advice::LinuxDontNeed,
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_from_files_counts() {
        let text = "55acc9b7e000-55acca1ef000 r-xp 00202000 08:01 42 /usr/local/bin/howdah";
        assert_eq!(code(text), Some((0x55ac_c9b7_e000, 0x55ac_ca1e_f000)));
        for other in [
            "55acca1ef000-55acca23d000 r--p 00871000 08:01 42 /usr/local/bin/howdah",
            "55acca23d000-55acca244000 rw-p 008be000 08:01 42 /usr/local/bin/howdah",
            "7ffeafbd1000-7ffeafbd3000 r-xp 00000000 00:00 0 [vdso]",
            "7ff739955000-7ff739b55000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
    }

    #[test]
    fn the_program_goes_on_and_is_smaller() {
        let resident = || -> u64 {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("RssFile:"));
            let line = line.unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let before = resident();
        forget_code();
        let after = resident();
        assert!(after < before, "{before} kB before, {after} kB after");
        assert_eq!(serde_json::to_string(&[1, 2]).unwrap(), "[1,2]");
    }
}
