//! The calls that change files, in place of those of the C library.
//!
//! Each has the C library's name and signature, and hands the work to the kernel by the same
//! system call. `open` is not variadic here, which stable Rust can not define: on Linux the third
//! argument of a call arrives in the same register either way, and is not looked at unless the
//! flags say that it was given.
#![expect(unsafe_code, reason = "symbols of C, raw pointers, system calls")]

use crate::watch::{Inode, Inside, Node, Opening, Verdict, Watched};
use libc::{c_char, c_int, c_long, c_uint, c_void, iovec, mode_t, off_t, size_t, ssize_t};
use std::ffi::CStr;
use std::mem::MaybeUninit;

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("power cuts are recorded on 64-bit Linux only");

/// Makes sure the linker takes this module for a program that watches something: nothing refers
/// to it by a Rust path.
pub(crate) fn link() {
    let calls: [*const (); 19] = [
        open as *const (),
        open64 as *const (),
        creat as *const (),
        write as *const (),
        pread as *const (),
        pread64 as *const (),
        pwrite as *const (),
        pwrite64 as *const (),
        writev as *const (),
        ftruncate as *const (),
        ftruncate64 as *const (),
        fallocate as *const (),
        fallocate64 as *const (),
        fsync as *const (),
        fdatasync as *const (),
        sync_file_range as *const (),
        rename as *const (),
        unlink as *const (),
        mkdir as *const (),
    ];
    std::hint::black_box(calls);
}

/// Where a file is longer than 32 bits tell, the C library has the call under a second name; on a
/// 64-bit machine the two are the same.
macro_rules! also {
    ($($name:ident = $of:ident($($given:ident: $kind:ty),*) -> $answer:ty;)*) => {$(
        /// # Safety
        /// As for the call without the number in its name.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($given: $kind),*) -> $answer {
            // SAFETY: the same promise.
            unsafe { $of($($given),*) }
        }
    )*};
}

also! {
    open64 = open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    pread64 = pread(fd: c_int, bytes: *mut c_void, count: size_t, offset: off_t) -> ssize_t;
    pwrite64 = pwrite(fd: c_int, bytes: *const c_void, count: size_t, offset: off_t) -> ssize_t;
    ftruncate64 = ftruncate(fd: c_int, len: off_t) -> c_int;
    fallocate64 = fallocate(fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int;
}

fn system(call: c_long, arguments: [c_long; 4]) -> c_long {
    let [a, b, c, d] = arguments;
    // SAFETY: the arguments are those the caller gave to the function of C whose work this is;
    // that they are valid for it is the caller's promise. None of these calls has more than four.
    unsafe { libc::syscall(call, a, b, c, d) }
}

fn fail(error: c_int) -> c_int {
    // SAFETY: the C library's own place for this thread's error number.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it is valid as long as the thread lives.
    unsafe { *place = error };
    -1
}

/// Which file a descriptor stands for.
pub(crate) fn inode(fd: c_int) -> Option<Inode> {
    let mut found = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel writes to our own bytes, whatever number it is asked about.
    let done = unsafe { libc::fstat(fd, found.as_mut_ptr()) };
    // SAFETY: it has written all of them if it says so.
    (done == 0)
        .then(|| unsafe { found.assume_init() })
        .map(|found| Inode { device: found.st_dev, number: found.st_ino })
}

/// # Safety
/// `path` is null or a string of C that stays as it is during the call.
unsafe fn text<'a>(path: *const c_char) -> Option<&'a str> {
    if path.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller's promise.
    unsafe { CStr::from_ptr(path) }.to_str().ok()
}

/// # Safety
/// As for `open(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let at = [c_long::from(libc::AT_FDCWD), path as c_long, flags.into(), mode.into()];
    let real = || system(libc::SYS_openat, at) as c_int;
    let Some(mut inside) = Inside::enter() else { return real() };
    // SAFETY: what `open(2)` asks for.
    let Some(path) = (unsafe { text(path) }) else { return real() };
    let Some((watched, name)) = inside.place(path) else { return real() };
    if let Verdict::Fail(error) = watched.judge("open", &name) {
        return fail(error);
    }
    let fd = real();
    if fd >= 0 {
        let opening =
            Opening { makes: flags & libc::O_CREAT != 0, empties: flags & libc::O_TRUNC != 0 };
        watched.opened(fd, name, opening);
    }
    fd
}

/// # Safety
/// As for `creat(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn creat(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the same promise.
    unsafe { open(path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode) }
}

/// Writes at an offset, or where the file stands.
///
/// # Safety
/// `bytes` has `count` bytes that can be read.
unsafe fn write_at(
    fd: c_int,
    bytes: *const c_void,
    count: size_t,
    offset: Option<off_t>,
) -> ssize_t {
    let real = |count: size_t| match offset {
        Some(at) => system(libc::SYS_pwrite64, [fd.into(), bytes as c_long, count as c_long, at]),
        None => system(libc::SYS_write, [fd.into(), bytes as c_long, count as c_long, 0]),
    };
    let Some(mut inside) = Inside::enter() else { return real(count) as ssize_t };
    let Some((watched, node)) = inside.node(fd) else { return real(count) as ssize_t };
    let taken = match watched.judge_node("write", &node) {
        Verdict::Fail(error) => return fail(error) as ssize_t,
        Verdict::Short => count.div_ceil(2),
        Verdict::Pass => count,
    };
    let done = real(taken);
    if let (Node::File(file), Ok(len @ 1..)) = (node, usize::try_from(done)) {
        let start = match offset {
            Some(at) => at,
            // Where it stands now is behind what was written, also when it appends.
            None => system(libc::SYS_lseek, [fd.into(), 0, libc::SEEK_CUR.into(), 0]) - done,
        };
        // SAFETY: the kernel has just read that many bytes from there.
        let written = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) };
        watched.wrote(file, start as u64, written);
    }
    done as ssize_t
}

/// # Safety
/// As for `write(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, count: size_t) -> ssize_t {
    // SAFETY: the same promise.
    unsafe { write_at(fd, bytes, count, None) }
}

/// # Safety
/// As for `pwrite(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pwrite(
    fd: c_int,
    bytes: *const c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    // SAFETY: the same promise.
    unsafe { write_at(fd, bytes, count, Some(offset)) }
}

/// # Safety
/// As for `pread(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn pread(
    fd: c_int,
    bytes: *mut c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    let readable = Inside::enter().is_none_or(|mut inside| match inside.node(fd) {
        Some((watched, Node::File(file))) => watched.is_readable(file, offset as u64, count as u64),
        _ => true,
    });
    if !readable {
        return fail(libc::EIO) as ssize_t;
    }
    system(libc::SYS_pread64, [fd.into(), bytes as c_long, count as c_long, offset]) as ssize_t
}

/// # Safety
/// As for `writev(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn writev(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t {
    let real = || system(libc::SYS_writev, [fd.into(), pieces as c_long, count.into(), 0]);
    let watched = Inside::enter().is_some_and(|mut inside| inside.node(fd).is_some());
    let Some(count) = usize::try_from(count).ok().filter(|count| watched && *count > 0) else {
        return real() as ssize_t;
    };
    let mut whole = Vec::new();
    for at in 0..count {
        // SAFETY: the caller promises `count` pieces.
        let piece = unsafe { *pieces.add(at) };
        if piece.iov_len > 0 {
            // SAFETY: and that each is readable.
            let bytes =
                unsafe { std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len) };
            whole.extend_from_slice(bytes);
        }
    }
    // SAFETY: our own bytes.
    unsafe { write_at(fd, whole.as_ptr().cast(), whole.len(), None) }
}

/// # Safety
/// As for `ftruncate(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ftruncate(fd: c_int, len: off_t) -> c_int {
    let real = || system(libc::SYS_ftruncate, [fd.into(), len, 0, 0]) as c_int;
    let Some(mut inside) = Inside::enter() else { return real() };
    let Some((watched, node)) = inside.node(fd) else { return real() };
    if let Verdict::Fail(error) = watched.judge_node("ftruncate", &node) {
        return fail(error);
    }
    let done = real();
    if let (Node::File(file), 0) = (node, done) {
        watched.resized(file, len as u64);
    }
    done
}

/// # Safety
/// As for `fallocate(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn fallocate(fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int {
    let real = || system(libc::SYS_fallocate, [fd.into(), mode.into(), at, len]) as c_int;
    let Some(mut inside) = Inside::enter() else { return real() };
    let Some((watched, node)) = inside.node(fd) else { return real() };
    if let Verdict::Fail(error) = watched.judge_node("fallocate", &node) {
        return fail(error);
    }
    // With the length kept nothing changes that a reader could see: holes are only punched
    // behind the end.
    let done = real();
    if let (Node::File(file), 0, 0) = (node, done, mode & libc::FALLOC_FL_KEEP_SIZE) {
        let end = (at + len) as u64;
        if end > watched.len(file) {
            watched.resized(file, end);
        }
    }
    done
}

fn sync(fd: c_int, call: c_long, name: &str) -> c_int {
    let real = || system(call, [fd.into(), 0, 0, 0]) as c_int;
    let Some(mut inside) = Inside::enter() else { return real() };
    let Some((watched, node)) = inside.node(fd) else { return real() };
    if let Verdict::Fail(error) = watched.judge_node(name, &node) {
        let took = watched.sync_failed(&node);
        drop(inside);
        std::thread::sleep(took);
        return fail(error);
    }
    watched.synced(node);
    0
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn fsync(fd: c_int) -> c_int {
    sync(fd, libc::SYS_fsync, "fsync")
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(fd, libc::SYS_fdatasync, "fdatasync")
}

/// Starts to write; promises nothing, so there is nothing to record.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn sync_file_range(fd: c_int, at: off_t, len: off_t, flags: c_uint) -> c_int {
    let real = || system(libc::SYS_sync_file_range, [fd.into(), at, len, flags.into()]) as c_int;
    let Some(mut inside) = Inside::enter() else { return real() };
    let Some((watched, node)) = inside.node(fd) else { return real() };
    match watched.judge_node("sync_file_range", &node) {
        Verdict::Fail(error) => fail(error),
        _ => 0,
    }
}

/// # Safety
/// As for `rename(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let here = c_long::from(libc::AT_FDCWD);
    let real = || system(libc::SYS_renameat, [here, from as c_long, here, to as c_long]) as c_int;
    let Some(mut inside) = Inside::enter() else { return real() };
    // SAFETY: what `rename(2)` asks for.
    let names = unsafe { (text(from), text(to)) };
    let (Some(from), Some(to)) = names else { return real() };
    let Some((_, to)) = inside.place(to) else { return real() };
    let Some((watched, from)) = inside.place(from) else { return real() };
    if let Verdict::Fail(error) = watched.judge("rename", &from) {
        return fail(error);
    }
    let done = real();
    if done == 0 {
        watched.renamed(from, to);
    }
    done
}

/// A call that changes one name.
///
/// # Safety
/// `path` is what `text` asks for.
unsafe fn name_call(
    path: *const c_char,
    call: &str,
    real: impl Fn() -> c_long,
    note: impl FnOnce(&mut Watched, String),
) -> c_int {
    let real = || real() as c_int;
    let Some(mut inside) = Inside::enter() else { return real() };
    // SAFETY: the caller's promise.
    let Some(path) = (unsafe { text(path) }) else { return real() };
    let Some((watched, name)) = inside.place(path) else { return real() };
    if let Verdict::Fail(error) = watched.judge(call, &name) {
        return fail(error);
    }
    let done = real();
    if done == 0 {
        note(watched, name);
    }
    done
}

/// # Safety
/// As for `unlink(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    let at = [c_long::from(libc::AT_FDCWD), path as c_long, 0, 0];
    // SAFETY: what `unlink(2)` asks for.
    unsafe { name_call(path, "unlink", || system(libc::SYS_unlinkat, at), Watched::unlinked) }
}

/// # Safety
/// As for `mkdir(2)`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    let at = [c_long::from(libc::AT_FDCWD), path as c_long, mode.into(), 0];
    // SAFETY: what `mkdir(2)` asks for.
    unsafe { name_call(path, "mkdir", || system(libc::SYS_mkdirat, at), Watched::made) }
}
