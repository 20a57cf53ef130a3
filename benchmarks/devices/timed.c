/* Times one kind of call: timed WHAT COUNT SIZE PATH; prints nanoseconds for each call, as a decimal number.
 *
 * read, write: SIZE bytes of PATH.  ioctl: an empty one.  crypt: CIOCCRYPT with AES-128-CBC.
 * poll: a forked writer writes a byte, poll(2) in this process returns; from before the write until after the poll.
 * pipe-read, pipe-write: the same as a round trip over two pipes to a process (descriptors 3 and 4), which is asked
 * with a line "r SIZE" or "w SIZE" and answers with SIZE bytes, or takes them and answers with one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct session_op { uint32_t cipher, mac, keylen; uint8_t *key; uint32_t mackeylen; uint8_t *mackey; uint32_t ses; };
struct crypt_op { uint32_t ses; uint16_t op, flags; uint32_t len; uint8_t *src, *dst, *mac, *iv; };
#define CIOCGSESSION _IOWR('c', 102, struct session_op)
#define CIOCCRYPT _IOWR('c', 104, struct crypt_op)
#define EMPTY _IO('v', 2)

static char buffer[4 << 20];

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void all(ssize_t (*transfer)(int, void *, size_t), int fd, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t part = transfer(fd, buffer + done, size - done);
        if (part <= 0)
            fail("transfer");
        done += part;
    }
}

static ssize_t put(int fd, void *data, size_t size) { return write(fd, data, size); }

static double poll_latency(const char *path, long count)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    int64_t *sent = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), total = 0;
    int go[2];
    if (fd < 0 || pipe(go))
        fail(path);
    pid_t child = fork();
    if (!child) {
        int out = open(path, O_WRONLY);
        char byte;
        close(go[1]);
        while (read(go[0], &byte, 1) == 1) {
            usleep(200); /* so that the other one waits already */
            *sent = now();
            if (write(out, "x", 1) != 1)
                fail("write");
        }
        _exit(0);
    }
    close(go[0]);
    for (long i = 0; i < count; i++) {
        struct pollfd entry = {fd, POLLIN, 0};
        if (write(go[1], "g", 1) != 1 || poll(&entry, 1, 10000) != 1)
            fail("poll");
        total += now() - *sent;
        if (read(fd, buffer, 1) != 1)
            fail("read");
    }
    close(go[1]);
    waitpid(child, NULL, 0);
    return (double)total / count;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    const char *what = argv[1], *path = argv[4];
    long count = atol(argv[2]), size = atol(argv[3]);
    char line[32];
    uint8_t key[16] = {1}, iv[16] = {2};
    uint32_t session = 0;
    if (!strcmp(what, "poll"))
        return printf("%.1f\n", poll_latency(path, count)) < 0;
    int piped = !strncmp(what, "pipe", 4), fd = piped ? -1 : open(path, !strcmp(what, "read") ? O_RDONLY : O_RDWR);
    if (!piped && fd < 0)
        fail(path);
    if (!strcmp(what, "crypt")) {
        struct session_op op = {.cipher = 11, .keylen = 16, .key = key};
        if (ioctl(fd, CIOCGSESSION, &op) < 0)
            fail("CIOCGSESSION");
        session = op.ses;
    }
    int64_t begun = 0;
    for (long i = -count / 10; i < count; i++) {
        if (i == 0)
            begun = now(); /* what came before has warmed up */
        if (!strcmp(what, "read")) {
            all(read, fd, size);
        } else if (!strcmp(what, "write")) {
            all(put, fd, size);
        } else if (!strcmp(what, "ioctl")) {
            if (ioctl(fd, EMPTY, 21L) < 0)
                fail("ioctl");
        } else if (!strcmp(what, "crypt")) {
            struct crypt_op op = {.ses = session, .len = size, .src = (uint8_t *)buffer, .dst = (uint8_t *)buffer, .iv = iv};
            if (ioctl(fd, CIOCCRYPT, &op) < 0)
                fail("CIOCCRYPT");
        } else if (piped) {
            int length = snprintf(line, sizeof line, "%c %10ld\n", what[5], size);
            if (write(4, line, length) != length)
                fail("pipe");
            if (what[5] == 'r') {
                all(read, 3, size);
            } else {
                all(put, 4, size);
                all(read, 3, 1);
            }
        }
    }
    printf("%.1f\n", (double)(now() - begun) / count);
    return 0;
}
