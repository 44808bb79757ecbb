/* A library for LD_PRELOAD: ends the process, or makes calls fail, at the n-th call that changes a file in a folder.

   kill.py compiles it. storm_arm() starts counting; the calls are those below, on descriptors and paths in the folder.
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { COUNT, KILL_BEFORE, KILL_AFTER, TORN, FAIL_ONCE, FAIL_ON, SHORT };

static volatile long calls, fatal;
static volatile int armed, mode, failure;
static double share;
static char folder[PATH_MAX];
static size_t length;

void storm_arm(const char *path, long at, int how, int error, double part) {
    snprintf(folder, sizeof folder, "%s", path);
    length = strlen(folder);
    calls = 0, fatal = at, mode = how, failure = error, share = part;
    armed = 1;
}

long storm_calls(void) { return calls; }

static int in_folder(const char *path) {
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int watched_fd(int fd) {
    char link[64], target[PATH_MAX];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, target, sizeof target - 1);
    if (size < 0) return 0;
    target[size] = 0;
    return in_folder(target);
}

static int watched_path(int at, const char *path) {
    char here[PATH_MAX];
    if (!armed || !path) return 0;
    if (path[0] == '/') return in_folder(path);
    if (at != AT_FDCWD) return watched_fd(at);
    return getcwd(here, sizeof here) && in_folder(here);
}

/* Returns 1 if the call must fail. `frees`: it makes room, so that a full disk does not refuse it. */
static int strikes(int frees) {
    long number = __sync_add_and_fetch(&calls, 1);
    if (number < fatal || !fatal) return 0;
    if (mode == FAIL_ON && !frees) { errno = failure; return 1; }
    if (number > fatal) return 0;
    if (mode == KILL_BEFORE) kill(getpid(), SIGKILL), pause();
    if (mode == FAIL_ONCE) { errno = failure; return 1; }
    return 0;
}

/* Called after a call that was done. */
static void done(void) {
    if (armed && fatal && calls == fatal && (mode == KILL_AFTER || mode == TORN)) kill(getpid(), SIGKILL), pause();
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define WRAPPED(result, name, frees, watched, parameters, arguments) \
    result name parameters { \
        REAL(name); \
        if (!(watched)) return real arguments; \
        if (strikes(frees)) return -1; \
        result value = real arguments; \
        int kept = errno; \
        done(); \
        errno = kept; \
        return value; \
    }

#define WRITING(name, parameters, arguments) \
    ssize_t name parameters { \
        REAL(name); \
        if (!watched_fd(fd)) return real arguments; \
        if (strikes(0)) return -1; \
        if (calls == fatal && (mode == TORN || mode == SHORT) && size > 1) { \
            size = (size_t)(share * (double)size); \
            if (!size && mode == SHORT) size = 1; \
        } \
        ssize_t value = size ? real arguments : 0; \
        int kept = errno; \
        done(); \
        errno = kept; \
        return value; \
    }

WRITING(write, (int fd, const void *data, size_t size), (fd, data, size))
WRITING(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRITING(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))

WRAPPED(int, fsync, 0, watched_fd(fd), (int fd), (fd))
WRAPPED(int, fdatasync, 0, watched_fd(fd), (int fd), (fd))
WRAPPED(int, ftruncate, 1, watched_fd(fd), (int fd, off_t size), (fd, size))
WRAPPED(int, ftruncate64, 1, watched_fd(fd), (int fd, off64_t size), (fd, size))
WRAPPED(int, rename, 0, watched_path(AT_FDCWD, b), (const char *a, const char *b), (a, b))
WRAPPED(int, renameat, 0, watched_path(t, b), (int s, const char *a, int t, const char *b), (s, a, t, b))
WRAPPED(int, link, 0, watched_path(AT_FDCWD, b), (const char *a, const char *b), (a, b))
WRAPPED(int, linkat, 0, watched_path(t, b), (int s, const char *a, int t, const char *b, int f), (s, a, t, b, f))
WRAPPED(int, unlink, 1, watched_path(AT_FDCWD, a), (const char *a), (a))
WRAPPED(int, unlinkat, 1, watched_path(s, a), (int s, const char *a, int f), (s, a, f))
WRAPPED(int, rmdir, 1, watched_path(AT_FDCWD, a), (const char *a), (a))
WRAPPED(int, mkdir, 0, watched_path(AT_FDCWD, a), (const char *a, mode_t m), (a, m))
WRAPPED(int, mkdirat, 0, watched_path(s, a), (int s, const char *a, mode_t m), (s, a, m))

#define OPENING(name, watched, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        mode_t m = 0; \
        if (flags & O_CREAT) { \
            va_list rest; \
            va_start(rest, flags); \
            m = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        if (!(flags & O_CREAT) || !(watched)) return real arguments; \
        if (strikes(0)) return -1; \
        int fd = real arguments; \
        int kept = errno; \
        done(); \
        errno = kept; \
        return fd; \
    }

OPENING(open, watched_path(AT_FDCWD, a), (const char *a, int flags, ...), (a, flags, m))
OPENING(open64, watched_path(AT_FDCWD, a), (const char *a, int flags, ...), (a, flags, m))
OPENING(openat, watched_path(s, a), (int s, const char *a, int flags, ...), (s, a, flags, m))
OPENING(openat64, watched_path(s, a), (int s, const char *a, int flags, ...), (s, a, flags, m))
