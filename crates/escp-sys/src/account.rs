//! Accounts of this host.

use std::ffi::CStr;
use std::io;

/// Largest buffer tried for one account's entry, in bytes.
const MOST_BYTES: usize = 1 << 20;

/// The home directory of `user`, as the system's name service knows it; `None` when there is no such user.
///
/// # Errors
/// When the name service fails.
pub fn home_of(user: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut buffer: Vec<libc::c_char> = vec![0; 1024];
    loop {
        let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: `user` ends in NUL; `entry`, `found` and `buffer` live past the call, and the length given
        // is that of `buffer`.
        let status = unsafe {
            libc::getpwnam_r(
                user.as_ptr(),
                entry.as_mut_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
            )
        };
        if status == libc::ERANGE && buffer.len() < MOST_BYTES {
            buffer.resize(buffer.len() * 2, 0);
            continue;
        }
        if status != 0 {
            return Err(io::Error::from_raw_os_error(status));
        }
        if found.is_null() {
            return Ok(None);
        }
        // SAFETY: status 0 and a result that is not null mean that `entry` is filled in.
        let home = unsafe { entry.assume_init() }.pw_dir;
        if home.is_null() {
            return Ok(None);
        }
        // SAFETY: getpwnam_r points `pw_dir` at a string with a NUL inside `buffer`, which is still alive
        // and unchanged.
        return Ok(Some(unsafe { CStr::from_ptr(home) }.to_bytes().to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_a_home_and_nobody_else_is_made_up() {
        assert_eq!(home_of(c"root").unwrap().as_deref(), Some(&b"/root"[..]));
        assert_eq!(home_of(c"no-such-user-here").unwrap(), None);
    }
}
