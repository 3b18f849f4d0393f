//! Names the chunks of a file: those of a large one on a second thread, while the next ones are read and cut.

use std::sync::mpsc;
use std::thread::Builder;

use engine::ids::ChunkId;
use engine::manifest::ManifestEntry;

/// The chunks of files of less are named by who cuts them.
const APART_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Chunks that wait to be named.
const WAITING_MAX: usize = 2;

/// The list's entry of a chunk.
pub(crate) fn entry_of(bytes: &[u8]) -> ManifestEntry {
    ManifestEntry { id: ChunkId::of(bytes), size: bytes.len() as u64 }
}

/// Calls `cut` with what takes the chunks, one after another, of a file of `size` bytes. Gives what it gave, and the list.
///
/// Memory: four chunks. Blocks.
pub(crate) fn name_chunks<T>(
    size: u64,
    cut: impl FnOnce(&mut dyn FnMut(&[u8])) -> T,
) -> (T, Vec<ManifestEntry>) {
    if size < APART_BYTES_MIN {
        return name_here(cut);
    }
    let (sender, waiting) = mpsc::sync_channel::<Vec<u8>>(WAITING_MAX);
    let (give_back, given_back) = mpsc::channel();
    std::thread::scope(|scope| {
        let name = move || {
            let named = waiting.into_iter().map(|bytes| {
                let entry = entry_of(&bytes);
                // Nobody takes it any more at the end.
                drop(give_back.send(bytes));
                entry
            });
            named.collect::<Vec<_>>()
        };
        let Ok(namer) = Builder::new().name("name-chunks".to_owned()).spawn_scoped(scope, name) else {
            // There is no thread to spare.
            return name_here(cut);
        };
        let done = cut(&mut |bytes| {
            let mut buffer = given_back.try_recv().unwrap_or_default();
            buffer.clear();
            buffer.extend_from_slice(bytes);
            // It takes all that come, unless it panicked: that comes out below.
            drop(sender.send(buffer));
        });
        drop(sender);
        (done, namer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn name_here<T>(cut: impl FnOnce(&mut dyn FnMut(&[u8])) -> T) -> (T, Vec<ManifestEntry>) {
    let mut entries = Vec::new();
    let done = cut(&mut |bytes| entries.push(entry_of(bytes)));
    (done, entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_that_of_the_chunks_in_their_order_on_either_thread() {
        let chunks: Vec<Vec<u8>> = (0..200_u32).map(|n| n.to_le_bytes().repeat(1 + n as usize * 7)).collect();
        let expected: Vec<ManifestEntry> = chunks.iter().map(|chunk| entry_of(chunk)).collect();
        for size in [0, APART_BYTES_MIN] {
            let (done, entries) = name_chunks(size, |take| {
                chunks.iter().for_each(|chunk| take(chunk));
                7
            });
            assert_eq!((done, &entries), (7, &expected));
        }
    }
}
