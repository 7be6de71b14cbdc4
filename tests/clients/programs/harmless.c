/* What a program does that knows nothing of device mapper, and what one does that uses its control node. Run with and without the shim.
 *
 *   harmless ordinary      does many calls and prints what each gave: the same text with and without the shim
 *   harmless crowd         forks while threads open, stat and ioctl; prints "done"
 *   harmless device        uses the control node in every way a descriptor can go; prints "done"
 *   harmless inherited FD  asks for the version on a descriptor that came over an exec
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define CONTROL "/dev/mapper/control"
#define MARK 77 /* no errno of any call here */

extern char **environ;
static const char *self;

#define MUST(truth)                                                                                       \
    do {                                                                                                  \
        if (!(truth)) {                                                                                   \
            fprintf(stderr, "line %d: not so: %s (errno %d, %s)\n", __LINE__, #truth, errno, strerror(errno)); \
            exit(1);                                                                                      \
        }                                                                                                 \
    } while (0)

/* The call's result, success or failure only, and errno, which a success must leave alone. */
#define TELL(call)                                                                        \
    do {                                                                                  \
        errno = MARK;                                                                     \
        long result = (long)(call);                                                       \
        printf("%s: %s, errno %d\n", #call, result < 0 ? "failed" : "done", errno);       \
    } while (0)

/* The same for a descriptor, which is closed: whether it stays over an exec. */
#define TELL_FD(call)                                                                                      \
    do {                                                                                                   \
        errno = MARK;                                                                                      \
        int fd = (call);                                                                                   \
        int error = errno;                                                                                 \
        printf("%s: %s, errno %d, flags %d\n", #call, fd < 0 ? "failed" : "done", error, fcntl(fd, F_GETFD)); \
        if (fd >= 0) close(fd);                                                                            \
    } while (0)

/* The same for a stream. */
#define TELL_STREAM(call)                                                                              \
    do {                                                                                               \
        errno = MARK;                                                                                  \
        FILE *stream = (call);                                                                         \
        int error = errno;                                                                             \
        printf("%s: %s, errno %d, flags %d\n", #call, stream ? "done" : "failed", error,               \
               stream ? fcntl(fileno(stream), F_GETFD) : -1);                                          \
        if (stream) fclose(stream);                                                                    \
    } while (0)

static int entries(const char *dir) {
    int count = 0;
    DIR *open = opendir(dir);
    MUST(open);
    while (readdir(open)) count++;
    closedir(open);
    return count;
}

static int status_of(pid_t child) {
    int status;
    MUST(child > 0 && waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int version(int fd, struct dm_ioctl *buffer) {
    memset(buffer, 0, sizeof *buffer);
    buffer->version[0] = DM_VERSION_MAJOR;
    buffer->data_size = sizeof *buffer;
    return ioctl(fd, DM_VERSION, buffer);
}

static int tells_version(int fd) {
    struct dm_ioctl buffer;
    errno = MARK;
    return version(fd, &buffer) == 0 && errno == MARK && buffer.version[0] == 4 && buffer.version[1] > 0;
}

/* What the kernel would say to an address that is none; the compiler must not know. */
static char *volatile nowhere = NULL;

static void ordinary_files(void) {
    struct stat stat_buffer;
    struct statx statx_buffer;
    umask(0);
    TELL_FD(open("made", O_CREAT | O_EXCL | O_RDWR, 0640));
    TELL_FD(open("made", O_CREAT | O_EXCL | O_RDWR, 0640));
    MUST(stat("made", &stat_buffer) == 0);
    printf("mode %o\n", stat_buffer.st_mode);
    TELL_FD(openat(AT_FDCWD, "made2", O_CREAT | O_WRONLY | O_CLOEXEC, 0604));
    MUST(lstat("made2", &stat_buffer) == 0);
    printf("mode %o\n", stat_buffer.st_mode);
    TELL_FD(open(".", O_TMPFILE | O_RDWR, 0600));
    TELL_FD(open("/dev/null", O_RDWR));
    TELL_FD(open("/dev/null", O_RDONLY | O_PATH));
    TELL_FD(open("/nowhere", O_RDONLY));
    TELL_FD(open("/dev/null/x", O_RDONLY));
    TELL_FD(open("/dev/null", O_DIRECTORY));
    TELL_FD(open(nowhere, O_RDONLY));
    int dev = open("/dev", O_DIRECTORY | O_PATH);
    TELL_FD(openat(dev, "null", O_RDONLY | O_CLOEXEC));
    TELL_FD(openat(dev, "/dev/null", O_RDONLY));
    TELL_FD(openat(-1, "/dev/null", O_RDONLY));
    TELL_FD(openat(-1, "null", O_RDONLY));
    TELL(fstatat(dev, "null", &stat_buffer, 0));
    TELL(fstatat(dev, "", &stat_buffer, AT_EMPTY_PATH));
    TELL(statx(dev, "null", AT_SYMLINK_NOFOLLOW, STATX_ALL, &statx_buffer));
    TELL(statx(dev, "", AT_EMPTY_PATH, STATX_TYPE, &statx_buffer));
    TELL(statx(-1, "/nowhere", 0, STATX_ALL, &statx_buffer));
    TELL(statx(-1, nowhere, 0, STATX_ALL, &statx_buffer));
    TELL(stat("/dev/null", &stat_buffer));
    TELL(stat("/nowhere", &stat_buffer));
    TELL(lstat(nowhere, &stat_buffer));
    TELL(stat("/sys/block/nothing/dm/name", &stat_buffer));
    TELL(access("/dev/null", R_OK | W_OK));
    TELL(access("/dev/null", X_OK));
    TELL(access("/nowhere", F_OK));
    TELL(faccessat(dev, "null", R_OK, AT_EACCESS));
    TELL(euidaccess("/dev/null", R_OK));
    close(dev);
    TELL_STREAM(fopen("made", "r"));
    TELL_STREAM(fopen("made", "re"));
    TELL_STREAM(fopen("/dev/null", "a+"));
    TELL_STREAM(fopen("made", "wx"));
    TELL_STREAM(fopen("/nowhere", "r"));
    TELL_STREAM(fopen("made", "?"));
    TELL_STREAM(fopen64("/proc/self/stat", "r,ccs=UTF-8"));
    TELL(unlink("made"));
    TELL(unlink("made"));
    TELL(unlink("made2"));
    TELL(unlink("/dev"));
    TELL(unlink(nowhere));
}

static void ordinary_ioctls(void) {
    int queued = -1, pair[2], sockets[2];
    struct termios termios;
    struct dm_ioctl buffer;
    int null = open("/dev/null", O_RDWR);
    MUST(pipe(pair) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    MUST(write(pair[1], "four", 4) == 4);
    TELL(ioctl(pair[0], FIONREAD, &queued));
    printf("%d bytes\n", queued);
    TELL(ioctl(pair[0], FIONREAD, nowhere));
    TELL(ioctl(null, TCGETS, &termios));
    TELL(ioctl(null, FIOCLEX));
    TELL(ioctl(-1, FIONREAD, &queued));
    TELL(ioctl(1000, FIONREAD, &queued));
    /* Device mapper's own, on what is not its node. */
    TELL(version(null, &buffer));
    TELL(version(pair[0], &buffer));
    TELL(version(sockets[0], &buffer));
    TELL(version(-1, &buffer));
    TELL(version(1000, &buffer));
    for (int i = 0; i < 2; i++) close(pair[i]), close(sockets[i]);
    close(null);
}

static void ordinary_processes(void) {
    pid_t child;
    fflush(stdout);
    if ((child = fork()) == 0) _exit(open("/dev/null", O_RDONLY) >= 0 ? 5 : 1);
    printf("fork: %d\n", status_of(child));
    if ((child = vfork()) == 0) {
        execl("/bin/sh", "sh", "-c", "exit 6", NULL);
        _exit(1);
    }
    printf("vfork: %d\n", status_of(child));
    char *args[] = {"sh", "-c", "exit 7", NULL};
    MUST(posix_spawn(&child, "/bin/sh", NULL, NULL, args, environ) == 0);
    printf("spawn: %d\n", status_of(child));
    printf("system: %d\n", WEXITSTATUS(system("exit 8")));
    for (int signal = 1; signal < 65; signal++) {
        struct sigaction action;
        if (sigaction(signal, NULL, &action) == 0 && action.sa_handler != SIG_DFL) printf("signal %d\n", signal);
    }
    sigset_t blocked;
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    printf("blocked: %d\n", !sigisemptyset(&blocked));
    printf("tasks: %d\n", entries("/proc/self/task"));
    printf("variable: %s %s\n", getenv("HARMLESS"), getenv("DM_NOTHING") ? "set" : "unset");
}

static int ordinary(void) {
    int before = entries("/proc/self/fd");
    ordinary_files();
    ordinary_ioctls();
    ordinary_processes();
    printf("descriptors kept: %d\n", entries("/proc/self/fd") - before);
    return 0;
}

static atomic_int stop;

/* Ordinary calls without pause; `control` is a control node or -1. */
static void *bustle(void *control) {
    struct stat stat_buffer;
    int fd, queued, node = *(int *)control;
    while (!stop) {
        MUST((fd = open("/dev/zero", O_RDONLY)) >= 0);
        MUST(ioctl(fd, TCGETS, &queued) == -1 && errno == ENOTTY);
        MUST(stat("/nowhere", &stat_buffer) == -1 && errno == ENOENT);
        MUST(close(fd) == 0);
        MUST(node < 0 || tells_version(node));
        free(malloc(1000));
    }
    return NULL;
}

/* Forks `children` one by one while `threads` bustle; each child does `work`, which is 0 if all is well. */
static void crowd(int threads, int children, int control, int (*work)(void)) {
    pthread_t ids[16];
    stop = 0;
    for (int i = 0; i < threads; i++) MUST(pthread_create(&ids[i], NULL, bustle, &control) == 0);
    for (int i = 0; i < children; i++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(20); /* a lock that a thread had at the fork */
            _exit(work());
        }
        MUST(status_of(child) == 0);
    }
    stop = 1;
    for (int i = 0; i < threads; i++) MUST(pthread_join(ids[i], NULL) == 0);
}

static int child_of_crowd(void) {
    struct stat stat_buffer;
    FILE *stream = fopen("/proc/self/stat", "r");
    int read = stream && fgetc(stream) != EOF && fclose(stream) == 0;
    return !(read && stat("/dev/null", &stat_buffer) == 0 && access("/nowhere", F_OK) == -1);
}

static int child_with_device(void) {
    int fd = open(CONTROL, O_RDWR);
    return !(fd >= 0 && tells_version(fd));
}

static int run_inherited(int fd, int by_vfork) {
    char number[16];
    snprintf(number, sizeof number, "%d", fd);
    pid_t child = by_vfork ? vfork() : fork();
    if (child == 0) {
        execl(self, self, "inherited", number, NULL);
        _exit(99);
    }
    return status_of(child);
}

/* Sends the descriptor to a child that has never opened the node. */
static int sent_to_a_child(int fd) {
    int pair[2];
    char byte = 0, space[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    pid_t child = fork();
    if (child == 0) {
        close(fd);
        int received;
        MUST(recvmsg(pair[1], &message, 0) == 1);
        memcpy(&received, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof received);
        _exit(!tells_version(received));
    }
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    MUST(sendmsg(pair[0], &message, 0) == 1);
    close(pair[0]), close(pair[1]);
    return status_of(child);
}

static int is_control(mode_t mode, unsigned major_number, unsigned minor_number) {
    return S_ISCHR(mode) && major_number == 10 && minor_number == 236;
}

static void device_paths(void) {
    int fd;
    struct stat stat_buffer;
    struct statx statx_buffer;
    errno = MARK;
    MUST((fd = open(CONTROL, O_RDWR | O_CLOEXEC)) >= 0 && errno == MARK);
    MUST(fcntl(fd, F_GETFD) == FD_CLOEXEC && !(fcntl(fd, F_GETFL) & O_NONBLOCK) && tells_version(fd));
    close(fd);
    MUST((fd = open(CONTROL, O_RDONLY)) >= 0 && fcntl(fd, F_GETFD) == 0 && tells_version(fd));
    close(fd);
    MUST((fd = open(CONTROL, O_RDWR | O_NONBLOCK)) >= 0 && fcntl(fd, F_GETFL) & O_NONBLOCK && tells_version(fd));
    close(fd);
    MUST((fd = open(CONTROL, O_RDWR | O_CREAT, 0600)) >= 0 && tells_version(fd));
    close(fd);
    MUST((fd = open(CONTROL, O_PATH)) >= 0);
    close(fd);
    MUST((fd = openat(-1, CONTROL, O_RDWR)) >= 0 && tells_version(fd));
    close(fd);
    MUST(open(CONTROL, O_RDWR | O_CREAT | O_EXCL, 0600) == -1 && errno == EEXIST);
    MUST(open(CONTROL, O_RDONLY | O_DIRECTORY) == -1 && errno == ENOTDIR);
    /* Relative paths are the kernel's, which has no driver behind such a node. */
    int root = open("/", O_DIRECTORY);
    MUST(openat(root, CONTROL + 1, O_RDWR) == -1);
    close(root);

    errno = MARK;
    MUST(stat(CONTROL, &stat_buffer) == 0 && errno == MARK);
    MUST(is_control(stat_buffer.st_mode, major(stat_buffer.st_rdev), minor(stat_buffer.st_rdev)));
    MUST(lstat(CONTROL, &stat_buffer) == 0 && fstatat(-1, CONTROL, &stat_buffer, AT_SYMLINK_NOFOLLOW) == 0);
    MUST(is_control(stat_buffer.st_mode, major(stat_buffer.st_rdev), minor(stat_buffer.st_rdev)));
    MUST(statx(-1, CONTROL, 0, STATX_BASIC_STATS, &statx_buffer) == 0);
    MUST(is_control(statx_buffer.stx_mode, statx_buffer.stx_rdev_major, statx_buffer.stx_rdev_minor));
    MUST(access(CONTROL, R_OK | W_OK) == 0 && access(CONTROL, X_OK) == -1 && errno == EACCES);

    FILE *stream = fopen(CONTROL, "r+");
    MUST(stream && fcntl(fileno(stream), F_GETFD) == 0 && tells_version(fileno(stream)) && fclose(stream) == 0);
    stream = fopen(CONTROL, "re");
    MUST(stream && fcntl(fileno(stream), F_GETFD) == FD_CLOEXEC && fclose(stream) == 0);
    MUST(fopen(CONTROL, "wx") == NULL && errno == EEXIST);
    MUST(fopen(CONTROL, "?") == NULL && errno == EINVAL);
    MUST((stream = fopen("/proc/misc", "r")));
    char line[256];
    int listed = 0;
    while (fgets(line, sizeof line, stream)) listed += strcmp(line, "236 device-mapper\n") == 0;
    MUST(listed == 1 && fclose(stream) == 0);
}

static int device(void) {
    struct dm_ioctl buffer;
    int before = entries("/proc/self/fd");
    device_paths();
    int fd = open(CONTROL, O_RDWR);
    MUST(tells_version(fd));
    MUST(version(fd, &buffer) == 0);
    MUST(ioctl(fd, DM_VERSION, nowhere) == -1 && errno == EFAULT);
    MUST(ioctl(fd, _IOWR(DM_IOCTL, 0xee, struct dm_ioctl), &buffer) == -1 && errno == ENOTTY);
    MUST(ioctl(fd, TCGETS, &buffer) == -1 && errno == ENOTTY);
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    MUST(poll(&polled, 1, 0) == 0);

    int copy = dup(fd), high = fcntl(fd, F_DUPFD_CLOEXEC, 200);
    MUST(tells_version(copy) && high >= 200 && tells_version(high) && dup2(fd, 150) == 150 && tells_version(150));
    close(copy), close(high), close(150);
    MUST(sent_to_a_child(fd) == 0);
    MUST(run_inherited(fd, 0) == 0 && run_inherited(fd, 1) == 0);
    crowd(4, 50, fd, child_with_device);
    MUST(tells_version(fd));
    close(fd);
    MUST(version(fd, &buffer) == -1 && errno == EBADF);
    MUST(entries("/proc/self/fd") == before);
    return 0;
}

int main(int count, char **args) {
    self = args[0];
    const char *what = count > 1 ? args[1] : "";
    if (!strcmp(what, "ordinary")) return ordinary();
    if (!strcmp(what, "inherited")) return !tells_version(atoi(args[2]));
    if (!strcmp(what, "crowd"))
        crowd(8, 200, -1, child_of_crowd);
    else if (!strcmp(what, "device"))
        device();
    else
        return 2;
    puts("done");
    return 0;
}
