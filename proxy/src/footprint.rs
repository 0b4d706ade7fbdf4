//! What the process keeps of its start in memory: nothing that it can have again.
//!
//! The start runs through much of the program once: the command line, the configuration, certificates, the tables of
//! the API. The kernel maps what is run, and much around it, and leaves it mapped; of what an idle proxy had resident
//! that was the most. It stays in the kernel's cache of files, so what is wanted again is found there.

use std::ffi::{c_int, c_void};

/// What a callback answers that wants no more objects.
const LAST: c_int = 1;

/// Lets go of the pages of the program that were mapped so far.
pub fn let_go_of_the_program() {
    // SAFETY: the callback keeps nothing of what it is given.
    unsafe { libc::dl_iterate_phdr(Some(let_go_of_object), std::ptr::null_mut()) };
}

/// Is called for the program, which comes first, and for no other object.
unsafe extern "C" fn let_go_of_object(object: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: it points to an object with so many headers, all of them readable while the callback runs.
    let (base, headers) = unsafe {
        let object = &*object;
        if object.dlpi_phdr.is_null() {
            return LAST;
        }
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    for header in headers.iter().filter(|header| is_only_read(header)) {
        if let Some((start, length)) = whole_pages(base + header.p_vaddr, header.p_memsz) {
            // SAFETY: nothing was ever written there, so the next look finds what is in the file. It fails for pages that
            // are locked in memory, which shall stay.
            unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
        }
    }
    LAST
}

/// WARNING: what is written at any time must stay, be it only the addresses that are filled in at the start. Those stand
/// in a part that is mapped to be written and protected later, and its header says so still.
fn is_only_read(header: &libc::Elf64_Phdr) -> bool {
    header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
}

/// The pages that lie within a part as a whole, by their beginning and length.
fn whole_pages(start: u64, length: u64) -> Option<(usize, usize)> {
    // SAFETY: it takes a number and gives one.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok().filter(|page| *page > 0)?;
    let first = start.next_multiple_of(page);
    let end = (start + length) / page * page;
    let length = end.checked_sub(first).filter(|length| *length > 0)?;
    Some((usize::try_from(first).ok()?, usize::try_from(length).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_runs_on_without_its_pages_and_knows_all_that_it_has_written() {
        static WRITTEN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
        let texts = ["a", "constant"].map(str::to_owned);
        WRITTEN.store(7, std::sync::atomic::Ordering::Relaxed);
        for _ in 0..3 {
            let_go_of_the_program();
            assert_eq!(format!("{} {}", texts[0], texts[1]), "a constant");
            assert_eq!(WRITTEN.load(std::sync::atomic::Ordering::Relaxed), 7);
            // A panic needs tables of the program's that nothing else reads.
            let panicked = std::panic::catch_unwind(|| assert!(texts.is_empty(), "on purpose"));
            assert!(panicked.is_err());
        }
    }

    #[test]
    fn only_pages_that_lie_within_as_a_whole_are_taken() {
        // SAFETY: it takes a number and gives one.
        let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a size");
        assert_eq!(whole_pages(1, page), None);
        assert_eq!(whole_pages(page, page - 1), None);
        let found = whole_pages(page + 1, 3 * page).map(|(start, length)| (start as u64, length as u64));
        assert_eq!(found, Some((2 * page, 2 * page)));
    }
}
