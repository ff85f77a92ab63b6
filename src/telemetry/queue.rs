//! Log lines on their way out: a bounded queue and the thread that empties it. Whoever reads the log may stop reading; the loop
//! must not wait for it (spec/configuration.md §3.2, `max_queue_size`).

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::rotated::Rotated;

/// Where lines go.
pub(super) enum Sink {
    Stderr,
    File(Rotated),
    #[cfg(test)]
    Writer(Box<dyn std::io::Write + Send>),
}

impl Sink {
    fn write(&mut self, line: &[u8]) {
        let written = match self {
            Sink::File(file) => file.write_line(line),
            Sink::Stderr => std::io::stderr().write_all(line),
            #[cfg(test)]
            Sink::Writer(writer) => writer.write_all(line),
        };
        if written.is_err() && matches!(self, Sink::File(_)) {
            // A full disk, say. Nobody is left to tell when standard error is gone as well.
            let _ = std::io::stderr().write_all(line);
        }
    }
}

enum Entry {
    Line(String),
    Sink(Sink),
    Flush(mpsc::Sender<()>),
}

/// Lines that wait, and lines that were dropped since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Waiting to be written.
    pub queued: usize,
    /// Dropped because too many waited.
    pub lost: u64,
}

/// See the module.
pub(super) struct Queue {
    sender: mpsc::Sender<Entry>,
    queued: Arc<AtomicUsize>,
    limit: AtomicUsize,
    lost: AtomicU64,
    told: AtomicU64,
}

impl Queue {
    /// Starts the writing thread.
    pub(super) fn start(mut sink: Sink, limit: usize) -> std::io::Result<Queue> {
        let (sender, entries) = mpsc::channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let waiting = Arc::clone(&queued);
        std::thread::Builder::new()
            .name("log".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || {
                for entry in entries {
                    match entry {
                        Entry::Line(line) => {
                            sink.write(line.as_bytes());
                            waiting.fetch_sub(1, Ordering::Relaxed);
                        }
                        Entry::Sink(new) => sink = new,
                        // Whoever asked may have given up.
                        Entry::Flush(done) => drop(done.send(())),
                    }
                }
            })?;
        let queue = Queue {
            sender,
            queued,
            limit: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            told: AtomicU64::new(0),
        };
        queue.limit_to(limit);
        Ok(queue)
    }

    /// Another bound; 0 = none.
    pub(super) fn limit_to(&self, limit: usize) {
        let limit = if limit == 0 { usize::MAX } else { limit };
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Lines from now on go there.
    pub(super) fn redirect(&self, sink: Sink) {
        let _ = self.sender.send(Entry::Sink(sink));
    }

    /// Takes a line, or drops and counts it. `Some(n)`: n lines were dropped of which nobody has been told, and there is room again.
    pub(super) fn push(&self, line: String) -> Option<u64> {
        if self.is_full() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.queued.fetch_add(1, Ordering::Relaxed);
        let _ = self.sender.send(Entry::Line(line));
        let lost = self.lost.load(Ordering::Relaxed);
        let told = self.told.swap(lost, Ordering::Relaxed);
        (lost > told).then_some(lost - told)
    }

    /// As many lines wait as may.
    pub(super) fn is_full(&self) -> bool {
        self.queued.load(Ordering::Relaxed) >= self.limit.load(Ordering::Relaxed)
    }

    pub(super) fn backlog(&self) -> Backlog {
        Backlog {
            queued: self.queued.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
        }
    }

    /// Waits until everything is written, at most so long.
    pub(super) fn flush(&self, limit: Duration) {
        let (done, finished) = mpsc::channel();
        if self.sender.send(Entry::Flush(done)).is_ok() {
            let _ = finished.recv_timeout(limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Writes once it may.
    #[derive(Clone, Default)]
    struct Gate(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_never_time() {
        let gate = Gate::default();
        let queue = Queue::start(Sink::Writer(Box::new(gate.clone())), 3).unwrap();
        {
            let _closed = gate.0.lock().unwrap();
            for number in 0..10 {
                assert_eq!(queue.push(format!("{number}\n")), None);
            }
            assert_eq!(queue.backlog(), Backlog { queued: 3, lost: 7 });
            assert!(queue.is_full());
        }
        queue.flush(Duration::from_secs(10));
        assert!(!queue.is_full());
        assert_eq!(queue.push("after\n".to_owned()), Some(7), "said once");
        assert_eq!(queue.push("later\n".to_owned()), None);
        queue.flush(Duration::from_secs(10));
        assert_eq!(queue.backlog(), Backlog { queued: 0, lost: 7 });
        assert_eq!(&*gate.0.lock().unwrap(), b"0\n1\n2\nafter\nlater\n");
    }

    #[test]
    fn lines_go_to_another_place_in_order() {
        let (first, second) = (Gate::default(), Gate::default());
        let queue = Queue::start(Sink::Writer(Box::new(first.clone())), 0).unwrap();
        queue.push("a\n".to_owned());
        queue.redirect(Sink::Writer(Box::new(second.clone())));
        queue.push("b\n".to_owned());
        queue.flush(Duration::from_secs(10));
        assert_eq!(&*first.0.lock().unwrap(), b"a\n");
        assert_eq!(&*second.0.lock().unwrap(), b"b\n");
    }
}
