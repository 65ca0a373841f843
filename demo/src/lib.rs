//! The whole house on one machine: the stand-ins for what a gateway stands among, a site that runs
//! every part as a process, and the books by which it is judged.

pub mod accounts;
pub mod bluez;
pub mod malice;
pub mod process;
pub mod secrecy;
pub mod site;
pub mod weather;
pub mod wiretap;
