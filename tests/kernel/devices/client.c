/* What programs do to a character device, one command each. Prints what came of it; waits for nothing but the device. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct point { int x, y; };
struct caller { int pid, tid, uid, gid; unsigned flags; };
struct text { unsigned long address, length; };
struct counts { unsigned opens, releases, flushes; };
#define SWAP _IOWR('v', 1, struct point)
#define WHO _IOR('v', 2, struct caller)
#define KEEP _IOW('v', 3, int)
#define ADD _IO('v', 4)
#define UPPER _IOW('v', 5, struct text)
#define FAIL _IO('v', 6)
#define COUNTS _IOR('v', 7, struct counts)
#define TOO_LATE _IO('v', 8)

static const char *device;

static int opened(int flags)
{
    int fd = open(device, flags | O_CLOEXEC);
    if (fd < 0) {
        printf("open: %s\n", strerrorname_np(errno));
        exit(0);
    }
    return fd;
}

/* The result of a call, or the name of its errno. */
static void told(const char *what, long result)
{
    if (result < 0)
        printf("%s: %s\n", what, strerrorname_np(errno));
    else
        printf("%s: %ld\n", what, result);
    fflush(stdout);
}

static void read_and_print(int fd, const char *who)
{
    char buffer[4096];
    ssize_t size = read(fd, buffer, sizeof buffer);
    if (size < 0)
        printf("%s: %s\n", who, strerrorname_np(errno));
    else
        printf("%s: %zd %.*s\n", who, size, (int)size, buffer);
    fflush(stdout);
}

static void on_signal(int number) { (void)number; }

static void *reader(void *fd)
{
    read_and_print(*(int *)fd, "thread");
    return NULL;
}

static void *who_thread(void *argument)
{
    int fd = *(int *)argument;
    struct caller caller;
    if (ioctl(fd, WHO, &caller) < 0)
        printf("WHO: %s\n", strerrorname_np(errno));
    else
        printf("thread: %s %s\n", caller.pid == getpid() ? "pid" : "other pid",
               caller.tid == (int)syscall(SYS_gettid) ? "tid" : "other tid");
    return NULL;
}

static int command(const char *name, int argc, char **argv)
{
    if (!strcmp(name, "read")) {
        read_and_print(opened(O_RDONLY), "read");
    } else if (!strcmp(name, "nonblock")) {
        int fd = opened(O_RDWR);
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); /* after the open: it is the call's flag that counts */
        read_and_print(fd, "nonblock");
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
        told("write", write(fd, "message", 7));
        read_and_print(fd, "blocking");
    } else if (!strcmp(name, "signal")) {
        /* Tells when it is about to read; a handler without SA_RESTART runs. */
        struct sigaction action = {.sa_handler = on_signal};
        sigaction(SIGINT, &action, NULL);
        int fd = opened(O_RDONLY);
        puts("reading");
        fflush(stdout);
        read_and_print(fd, "read");
    } else if (!strcmp(name, "poll")) {
        struct pollfd entry = {opened(O_RDWR | O_NONBLOCK), POLLIN, 0};
        told("before", poll(&entry, 1, 0));
        entry.events = POLLOUT;
        told("writable", poll(&entry, 1, 0));
        entry.events = POLLIN;
        told("after", poll(&entry, 1, atoi(argv[0])));
        printf("revents: %s\n", entry.revents & POLLIN ? "IN" : entry.revents & POLLHUP ? "HUP" : "?");
        read_and_print(entry.fd, "read");
    } else if (!strcmp(name, "select")) {
        int fd = opened(O_RDONLY);
        fd_set set;
        FD_ZERO(&set);
        FD_SET(fd, &set);
        struct timeval time = {atoi(argv[0]), 0};
        puts("waiting");
        fflush(stdout);
        told("select", select(fd + 1, &set, NULL, NULL, &time));
        read_and_print(fd, "read");
    } else if (!strcmp(name, "epoll")) {
        /* epoll level|edge N: N events; on each edge everything is read, on each level one message. */
        int edge = !strcmp(argv[0], "edge"), fd = opened(O_RDONLY | O_NONBLOCK), poller = epoll_create1(0);
        struct epoll_event event = {EPOLLIN | (edge ? EPOLLET : 0), {.fd = fd}}, got;
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        puts("waiting");
        fflush(stdout);
        for (int left = atoi(argv[1]); left > 0; left--) {
            told("epoll", epoll_wait(poller, &got, 1, 20000));
            read_and_print(fd, "read");
        }
        told("then", epoll_wait(poller, &got, 1, 0));
    } else if (!strcmp(name, "edge-unread")) {
        /* An edge is told once, though nothing was read; the next message is the next edge. */
        int fd = opened(O_RDWR | O_NONBLOCK), poller = epoll_create1(0);
        struct epoll_event event = {EPOLLIN | EPOLLET, {.fd = fd}}, got;
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        told("write", write(fd, "1", 1));
        told("first", epoll_wait(poller, &got, 1, 20000));
        told("again", epoll_wait(poller, &got, 1, 0));
        told("write", write(fd, "2", 1));
        told("second", epoll_wait(poller, &got, 1, 20000));
        char left[16];
        while (read(fd, left, sizeof left) > 0)
            ;
    } else if (!strcmp(name, "shared")) {
        /* Two threads and a forked child read from one descriptor; this thread writes to it meanwhile. */
        int fd = opened(O_RDWR);
        pthread_t threads[2];
        pid_t child = fork();
        if (child == 0) {
            read_and_print(fd, "child");
            _exit(0);
        }
        for (int i = 0; i < 2; i++)
            pthread_create(&threads[i], NULL, reader, &fd);
        for (int i = 1; i <= 3; i++) {
            char text[2] = {(char)('0' + i), 0};
            if (write(fd, text, 1) != 1)
                perror("write");
        }
        for (int i = 0; i < 2; i++)
            pthread_join(threads[i], NULL);
        waitpid(child, NULL, 0);
    } else if (!strcmp(name, "positions")) {
        char byte;
        int fd = opened(O_RDWR);
        told("lseek", lseek(fd, 0, SEEK_SET));
        told("pread", pread(fd, &byte, 1, 0));
        told("pwrite", pwrite(fd, "x", 1, 0));
        void *memory = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
        told("mmap", memory == MAP_FAILED ? -1 : 0);
        struct stat status;
        fstat(fd, &status);
        printf("stat: %s %lld\n", S_ISREG(status.st_mode) ? "regular" : "other", (long long)status.st_size);
    } else if (!strcmp(name, "write")) {
        int fd = opened(O_WRONLY);
        for (int i = 0; i < argc; i++)
            told("write", write(fd, argv[i], strlen(argv[i])));
    } else if (!strcmp(name, "releases")) {
        /* Counted through a second open: three descriptors of one open file are one release. */
        int watcher = opened(O_RDONLY), fd = opened(O_RDONLY), copy = dup(fd);
        struct counts counts;
        pid_t child = fork();
        if (child == 0) {
            pause();
            _exit(0);
        }
        close(fd);
        close(copy);
        ioctl(watcher, COUNTS, &counts);
        printf("in the child still: %u opens, %u releases\n", counts.opens, counts.releases);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        ioctl(watcher, COUNTS, &counts);
        printf("nowhere: %u opens, %u releases, %u flushes\n", counts.opens, counts.releases, counts.flushes);
    } else if (!strcmp(name, "ioctls")) {
        int fd = opened(O_RDWR | O_NONBLOCK), number = 40;
        struct point point = {1, 2};
        told("SWAP", ioctl(fd, SWAP, &point));
        printf("point: %d %d\n", point.x, point.y);
        told("KEEP", ioctl(fd, KEEP, &number));
        told("ADD", ioctl(fd, ADD, 2L));
        told("unknown", ioctl(fd, _IO('v', 99), 0L));
        told("unknown with data", ioctl(fd, _IOWR('v', 99, struct point), &point));
        told("FAIL", ioctl(fd, FAIL, (long)EXDEV));
        told("bad pointer", ioctl(fd, SWAP, (void *)16));
    } else if (!strcmp(name, "who")) {
        int fd = opened(O_RDWR | O_APPEND);
        struct caller caller;
        told("WHO", ioctl(fd, WHO, &caller));
        printf("%s %s %s %s\n", caller.pid == getpid() ? "pid" : "other pid", caller.tid == getpid() ? "tid" : "other tid",
               caller.uid == (int)getuid() ? "uid" : "other uid", caller.gid == (int)getgid() ? "gid" : "other gid");
        printf("flags: %s %s\n", (caller.flags & O_ACCMODE) == O_RDWR ? "RDWR" : "?", caller.flags & O_APPEND ? "APPEND" : "?");
        pthread_t thread;
        pthread_create(&thread, NULL, who_thread, &fd);
        pthread_join(thread, NULL);
    } else if (!strcmp(name, "memory")) {
        int fd = opened(O_RDWR);
        char words[] = "pointers inside the structure";
        struct text text = {(unsigned long)words, 8};
        told("UPPER", ioctl(fd, UPPER, &text));
        puts(words);
        struct text nowhere = {16, 8}, constant = {(unsigned long)"constant", 8}, endless = {(unsigned long)words, ~0UL};
        told("nowhere", ioctl(fd, UPPER, &nowhere));
        told("constant", ioctl(fd, UPPER, &constant));
        told("endless", ioctl(fd, UPPER, &endless));
        told("too late", ioctl(fd, TOO_LATE, words));
        told("UPPER", ioctl(fd, UPPER, &text));
    } else if (!strcmp(name, "exclusive")) {
        int fd = opened(O_RDONLY);
        told("second", open(device, O_RDONLY) < 0 ? -1 : 0);
        close(fd);
        told("afterwards", open(device, O_RDONLY) < 0 ? -1 : 0);
    } else if (!strcmp(name, "hold")) {
        /* Opens the device, says so, waits for a line, and then tries everything. */
        int fd = opened(O_RDWR);
        struct pollfd entry = {fd, POLLIN, 0};
        puts("open");
        fflush(stdout);
        getchar();
        read_and_print(fd, "read");
        told("write", write(fd, "x", 1));
        told("ioctl", ioctl(fd, ADD, 1L));
        told("poll", poll(&entry, 1, 20000));
        printf("revents: %s\n", entry.revents & (POLLERR | POLLHUP) ? "ERR" : "?");
        told("close", close(fd));
    } else if (!strcmp(name, "much")) {
        /* One read(2) of more than fits into one request of the protocol. */
        static char room[3 << 20];
        told("read", read(opened(O_RDONLY), room, sizeof room));
    } else if (!strcmp(name, "write-much")) {
        /* One write(2) of N bytes, which a signal may interrupt. */
        struct sigaction action = {.sa_handler = on_signal};
        sigaction(SIGINT, &action, NULL);
        static char data[3 << 20];
        int fd = opened(O_WRONLY);
        puts("writing");
        fflush(stdout);
        told("write", write(fd, data, atoi(argv[0])));
    } else if (!strcmp(name, "fill")) {
        /* Writes until it would have to wait; how much went in. */
        int fd = opened(O_WRONLY | O_NONBLOCK);
        char block[4096];
        long total = 0, size;
        memset(block, 'x', sizeof block);
        while ((size = write(fd, block, sizeof block)) > 0)
            total += size;
        told("full", size);
        printf("took: %ld\n", total);
        struct pollfd entry = {fd, POLLOUT, 0};
        told("writable", poll(&entry, 1, 0));
    } else {
        fprintf(stderr, "no such command: %s\n", name);
        return 2;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    device = argv[1];
    return command(argv[2], argc - 3, argv + 3);
}
