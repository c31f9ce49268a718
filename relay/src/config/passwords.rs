//! A file of users and hashes of their passwords.

use std::collections::HashMap;
use std::path::Path;

use argon2::Argon2;
use argon2::password_hash::{PasswordHashString, PasswordVerifier};

/// Users and hashes of their passwords: one `USER:HASH` a line, `#` before a comment. A hash is a PHC
/// string of Argon2 (RFC 9106), which says itself what it costs to compute.
#[derive(Clone, Debug, Default)]
pub struct Passwords(HashMap<Box<str>, PasswordHashString>);

impl Passwords {
    /// Reads a file, or says what is wrong with it, and where.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Self::parse(&text)
            .map_err(|(line, problem)| format!("{}:{line}: {problem}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut users = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let problem = |problem: String| (number, problem);
            let (user, hash) = line
                .split_once(':')
                .ok_or_else(|| problem("needs a user, a colon and a hash".to_owned()))?;
            let hash = PasswordHashString::new(hash).map_err(|error| {
                problem(format!("not a PHC string ({error}); `argon2 SALT -id -e` makes one"))
            })?;
            if !hash.algorithm().as_str().starts_with("argon2") {
                return Err(problem(format!("{}, but only Argon2 is known", hash.algorithm())));
            }
            if users.insert(user.into(), hash).is_some() {
                return Err(problem(format!("user `{user}` is there twice")));
            }
        }
        Ok(Self(users))
    }

    /// Whether this is the user's password. Takes as long as the hash wants, for a user who is not
    /// known too: the time does not tell who is.
    pub fn check(&self, user: Option<&str>, password: Option<&[u8]>) -> bool {
        let known = user.and_then(|user| self.0.get(user));
        let Some(hash) = known.or_else(|| self.0.values().next()) else { return false };
        let matches = Argon2::default()
            .verify_password(password.unwrap_or_default(), &hash.password_hash())
            .is_ok();
        known.is_some() && password.is_some() && matches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf %s secret | argon2 saltsalt -id -t 1 -k 8 -e`
    const HASH: &str =
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$vk+JgWgZGbXHtEqPQPhzXbD+QxxkJR5Fq2AXLhDyYaY";

    #[test]
    fn a_password_is_right_or_not() {
        let users = Passwords::parse(&format!("# people\n\nanna:{HASH}\n")).unwrap();
        assert!(users.check(Some("anna"), Some(b"secret")));
        assert!(!users.check(Some("anna"), Some(b"Secret")));
        assert!(!users.check(Some("anna"), None));
        assert!(!users.check(Some("bert"), Some(b"secret")));
        assert!(!users.check(None, Some(b"secret")));
        assert!(!Passwords::default().check(Some("anna"), Some(b"secret")));
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        for (line, wanted) in [
            ("anna".to_owned(), "colon"),
            ("anna:secret".to_owned(), "PHC"),
            ("anna:$pbkdf2-sha512$i=1$c2FsdHNhbHQ$BsJQqJNmUSNcIILuDp3JQA".to_owned(), "Argon2"),
            (format!("x:{HASH}"), "twice"),
        ] {
            let (number, problem) = Passwords::parse(&format!("x:{HASH}\n{line}\n")).unwrap_err();
            assert!(number == 2 && problem.contains(wanted), "{number}: {problem}");
        }
    }
}
