# The image holds two files: one static binary and the CA bundle. No shell, no libc, nothing to patch.
#   podman build --format docker -t sidegate:0.1.0 .     (the OCI format has no HEALTHCHECK)

# The slim image suffices: aws-lc-sys brings its bindings and its assembler, and asks for a C compiler
# and libc6-dev, both of which are in it. CMake would only be used with FIPS or without assembler.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# --target is written out although it is the host's own (so amd64 and arm64 build alike): without it
# RUSTFLAGS would reach build scripts and procedural macros too, and those cannot be static.
# glibc answers `files dns` by itself since 2.34: host names resolve without /etc/nsswitch.conf.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    target="$(rustc --print host-tuple)" \
 && RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked --release --bin sidegate --target "$target" \
 && install -D "target/$target/release/sidegate" /out/sidegate

FROM scratch
# Without a bundle the gate could not reach an issuer over https. Another one: mount it over this path,
# or name it in SSL_CERT_FILE.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/sidegate /sidegate
# By number: kubelet can only prove runAsNonRoot of a number, and there is no /etc/passwd here.
USER 65532:65532
EXPOSE 8080
# Exec form throughout, for there is no shell. Kubernetes ignores HEALTHCHECK: see k8s/deployment.yaml.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/sidegate", "healthcheck"]
ENTRYPOINT ["/sidegate"]
CMD ["run"]
