/* F, the floor: a TCP relay that does nothing but relay. No other proxy in user space that copies bytes can cost much less.
 * Edge-triggered epoll, every socket registered once; bytes go from socket to socket through one scratch buffer.
 * What the other side does not take is held, and its source is not read until it is gone.
 * Threads share nothing: each has its own listening socket, and the kernel spreads the connections.
 *
 *   relay LISTEN_PORT BACKEND_PORT [THREADS]      both on 127.0.0.1
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SCRATCH = 64 * 1024, EVENTS = 256, BACKLOG = 4096 };

struct pair;

struct end {
    int fd;
    bool readable;     /* an edge said so, and no short read has said otherwise since */
    bool hung_up;      /* its FIN or reset has arrived: a short read is no longer the end of what is there */
    bool finished;     /* its FIN has been read and passed on */
    char *held;        /* bytes that this socket has not taken yet */
    size_t held_at, held_size;
    struct end *other;
    struct pair *pair;
};

struct pair {
    struct end client, backend;
    bool dead;
    struct pair *next; /* in the graveyard */
};

static _Thread_local char scratch[SCRATCH];
static _Thread_local struct pair *graveyard; /* freed after the batch: later events of it may still point here */
static _Thread_local int epoll;
static struct sockaddr_in listen_address, backend_address;
static int threads = 1;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void bury(struct pair *pair) {
    if (pair->dead) return;
    pair->dead = true;
    close(pair->client.fd);
    close(pair->backend.fd);
    pair->next = graveyard;
    graveyard = pair;
}

/* Bytes written, 0 if the socket is full or still connecting, -1 if it is broken. */
static ssize_t push(int fd, const char *bytes, size_t size) {
    ssize_t n = send(fd, bytes, size, MSG_NOSIGNAL);
    return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : n;
}

static bool flush(struct end *to) {
    ssize_t n = push(to->fd, to->held + to->held_at, to->held_size - to->held_at);
    if (n < 0) return false;
    to->held_at += (size_t)n;
    if (to->held_at == to->held_size) {
        free(to->held);
        to->held = NULL;
    }
    return true;
}

static bool pump(struct end *from) {
    struct end *to = from->other;
    while (from->readable && !to->held) {
        ssize_t n = read(from->fd, scratch, SCRATCH);
        if (n < 0) {
            if (errno == EINTR) continue;
            from->readable = false;
            return errno == EAGAIN;
        }
        if (n == 0) {
            from->readable = false;
            from->finished = true;
            shutdown(to->fd, SHUT_WR);
            return !to->finished;
        }
        if (n < SCRATCH && !from->hung_up) from->readable = false;
        ssize_t written = push(to->fd, scratch, (size_t)n);
        if (written < 0) return false;
        if (written < n) {
            to->held_at = 0;
            to->held_size = (size_t)(n - written);
            if (!(to->held = malloc(to->held_size))) fail("malloc");
            memcpy(to->held, scratch + written, to->held_size);
        }
    }
    return true;
}

static bool on_event(struct end *end, uint32_t events) {
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) end->hung_up = true;
    if (end->hung_up || events & EPOLLIN) end->readable = !end->finished;
    if (events & EPOLLOUT && end->held && (!flush(end) || !pump(end->other))) return false;
    return pump(end);
}

static void watch(int fd, void *what, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
}

static void begin(struct end *end, int fd, struct end *other, struct pair *pair) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    end->fd = fd;
    end->other = other;
    end->pair = pair;
    watch(fd, end, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
}

static void accept_all(int listener) {
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client < 0) return;
        int backend = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (backend < 0) fail("socket");
        /* A refused connect shows itself as an event of the socket. */
        if (connect(backend, (struct sockaddr *)&backend_address, sizeof backend_address) && errno != EINPROGRESS)
            fail("connect");
        struct pair *pair = calloc(1, sizeof *pair);
        if (!pair) fail("calloc");
        begin(&pair->client, client, &pair->backend, pair);
        begin(&pair->backend, backend, &pair->client, pair);
    }
}

static struct sockaddr_in loopback(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void *relay(void *unused) {
    (void)unused;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (threads > 1) setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&listen_address, sizeof listen_address) || listen(listener, BACKLOG))
        fail("listen");
    if ((epoll = epoll_create1(EPOLL_CLOEXEC)) < 0) fail("epoll_create1");
    watch(listener, NULL, EPOLLIN);
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll, events, EVENTS, -1);
        if (count < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct end *end = events[i].data.ptr;
            if (!end)
                accept_all(listener);
            else if (!end->pair->dead && !on_event(end, events[i].events))
                bury(end->pair);
        }
        while (graveyard) {
            struct pair *pair = graveyard;
            graveyard = pair->next;
            free(pair->client.held);
            free(pair->backend.held);
            free(pair);
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) {
        fprintf(stderr, "usage: relay LISTEN_PORT BACKEND_PORT [THREADS]\n");
        return 64;
    }
    listen_address = loopback(argv[1]);
    backend_address = loopback(argv[2]);
    if (argc == 4) threads = atoi(argv[3]);
    for (int i = 1; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, relay, NULL)) fail("pthread_create");
    }
    relay(NULL);
}
