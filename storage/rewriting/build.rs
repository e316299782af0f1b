//! Compiles the limiter against the headers of the RocksDB that is linked.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/limiter.cc");
    let Some(sources) = std::env::var_os("DEP_ROCKSDB_CARGO_MANIFEST_DIR").map(PathBuf::from)
    else {
        println!("cargo::error=librocksdb-sys does not tell where its headers are");
        return;
    };
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .define("NDEBUG", None)
        .define("ROCKSDB_PLATFORM_POSIX", None)
        .include(sources.join("rocksdb/include"))
        .flag_if_supported("-Wno-unused-parameter")
        .file("src/limiter.cc")
        .compile("smalti_rewriting");
}
