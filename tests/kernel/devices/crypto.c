/* A program that uses /dev/crypto by its public interface. Reads commands, one a line, and prints a line for each:
 * bytes are written in hexadecimal, "-" is none, and a call that fails prints the name of its errno. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* The layouts of crypto/cryptodev.h. */
struct session_op { uint32_t cipher, mac, keylen; uint8_t *key; uint32_t mackeylen; uint8_t *mackey; uint32_t ses; };
struct alg_info { char cra_name[64], cra_driver_name[64]; };
struct session_info_op { uint32_t ses; struct alg_info cipher_info, hash_info; uint16_t alignmask; uint32_t flags; };
struct crypt_op { uint32_t ses; uint16_t op, flags; uint32_t len; uint8_t *src, *dst, *mac, *iv; };
struct crypt_auth_op {
    uint32_t ses; uint16_t op, flags; uint32_t len, auth_len; uint8_t *auth_src, *src, *dst, *tag; uint32_t tag_len;
    uint8_t *iv; uint32_t iv_len;
};
struct cphash_op { uint32_t dst_ses, src_ses; };
#define CRIOGET _IOWR('c', 101, uint32_t)
#define CIOCGSESSION _IOWR('c', 102, struct session_op)
#define CIOCFSESSION _IOW('c', 103, uint32_t)
#define CIOCCRYPT _IOWR('c', 104, struct crypt_op)
#define CIOCASYMFEAT _IOR('c', 106, uint32_t)
#define CIOCGSESSINFO _IOWR('c', 107, struct session_info_op)
#define CIOCAUTHCRYPT _IOWR('c', 109, struct crypt_auth_op)
#define CIOCCPHASH _IOW('c', 112, struct cphash_op)

#define MAX (2 << 20)
static uint8_t source[MAX], target[MAX], third[MAX];
static int device;

static unsigned parse(const char *hex, uint8_t *out)
{
    unsigned size = 0;
    if (strcmp(hex, "-"))
        for (; hex[0] && hex[1]; hex += 2)
            sscanf(hex, "%2hhx", &out[size++]);
    return size;
}

static void print(const uint8_t *data, unsigned size)
{
    if (!size)
        printf("-");
    for (unsigned i = 0; i < size; i++)
        printf("%02x", data[i]);
}

static int failed(void)
{
    printf("%s\n", strerrorname_np(errno));
    return 0;
}

static uint32_t begin(unsigned cipher, const char *key, unsigned mac, const char *mac_key)
{
    static uint8_t key_bytes[1024], mac_bytes[1024];
    struct session_op op = {.cipher = cipher, .mac = mac, .key = key_bytes, .mackey = mac_bytes};
    op.keylen = parse(key, key_bytes);
    op.mackeylen = parse(mac_key, mac_bytes);
    return ioctl(device, CIOCGSESSION, &op) < 0 ? 0 : op.ses;
}

/* crypt CIPHER KEY IV OP FLAGS DATA: what comes out, and the vector afterwards. */
static int crypt_line(char **word)
{
    uint8_t iv[16] = {0};
    uint32_t ses = begin(atoi(word[1]), word[2], 0, "-");
    if (!ses)
        return failed();
    struct crypt_op op = {.ses = ses, .op = atoi(word[4]), .flags = atoi(word[5]), .src = source, .dst = target};
    unsigned iv_size = parse(word[3], iv);
    op.iv = iv_size ? iv : NULL;
    op.len = parse(word[6], source);
    int result = ioctl(device, CIOCCRYPT, &op);
    int number = errno;
    ioctl(device, CIOCFSESSION, &ses);
    errno = number;
    if (result < 0)
        return failed();
    print(target, op.len);
    printf(" ");
    print(iv, iv_size);
    return puts("");
}

/* hash MAC KEY DATA…: the digest of all the data, each a call of its own if there are several. */
static int hash_line(char **word, int words)
{
    uint8_t digest[64] = {0};
    uint32_t ses = begin(0, "-", atoi(word[1]), word[2]);
    if (!ses)
        return failed();
    struct crypt_op op = {.ses = ses, .src = source, .mac = digest};
    for (int i = 3; i < words; i++) {
        op.len = parse(word[i], source);
        op.flags = words == 4 ? 0 : (i == 3 ? 1 | 64 : 1) | (i == words - 1 ? 2 : 0); /* UPDATE, RESET, FINAL */
        if (ioctl(device, CIOCCRYPT, &op) < 0)
            return failed();
    }
    print(digest, 64);
    ioctl(device, CIOCFSESSION, &ses);
    return puts("");
}

/* auth CIPHER KEY MAC MACKEY FLAGS OP IV TAGLEN AAD DATA [TAG]: what comes out, and the tag of the SRTP way. */
static int auth_line(char **word, int words)
{
    uint8_t iv[16], tag[64] = {0};
    uint32_t ses = begin(atoi(word[1]), word[2], atoi(word[3]), word[4]);
    if (!ses)
        return failed();
    unsigned flags = atoi(word[5]), in_place = flags & (16 | 32);
    struct crypt_auth_op op = {.ses = ses, .op = atoi(word[6]), .flags = flags, .iv = iv, .tag = tag};
    op.iv_len = parse(word[7], iv);
    op.tag_len = atoi(word[8]);
    op.auth_src = third;
    op.auth_len = parse(word[9], third);
    op.src = in_place ? target : source;
    op.dst = target;
    op.len = parse(word[10], op.src);
    if (flags & 32) { /* the data is the end of the packet */
        op.src = op.dst = third + op.auth_len - op.len;
    }
    if (words > 11)
        parse(word[11], tag);
    if (ioctl(device, CIOCAUTHCRYPT, &op) < 0)
        return failed();
    print(op.dst, op.len);
    printf(" ");
    print(tag, flags & 32 ? op.tag_len : 0);
    return puts("");
}

/* Each size forth and back with CTR: into another buffer, in place, and into one that overlaps. */
static int sizes_line(void)
{
    uint8_t iv[16];
    uint32_t ses = begin(21, "000102030405060708090a0b0c0d0e0f", 0, "-");
    unsigned sizes[] = {1, 2, 15, 16, 17, 4095, 4096, 4097, 65536, 65537, (1 << 20) - 1, 1 << 20};
    for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int shift = 0; shift < 3; shift++) {
            unsigned size = sizes[i], offset = shift * 5;
            for (unsigned j = 0; j < size; j++)
                third[j] = source[j] = (uint8_t)(j * 7 + size);
            uint8_t *to = shift == 0 ? target : source + offset - 5;
            for (int op = 0; op < 2; op++) {
                memset(iv, 9, 16);
                struct crypt_op call = {.ses = ses, .op = op, .len = size, .iv = iv};
                call.src = op ? to : source;
                call.dst = op ? target : to;
                if (ioctl(device, CIOCCRYPT, &call) < 0)
                    return failed();
                if (!op && size > 16 && !memcmp(to, third, size))
                    return puts("it is not encrypted");
            }
            if (memcmp(target, third, size))
                return printf("wrong for %u bytes, way %d\n", size, shift);
        }
    return puts("as they were");
}

static int errors_line(void)
{
    uint8_t iv[16] = {0};
    uint32_t ses = begin(11, "000102030405060708090a0b0c0d0e0f", 0, "-"), wrong = ses + 1, number = 0;
    struct crypt_op op = {.ses = wrong, .len = 16, .src = source, .dst = target, .iv = iv};
    printf("wrong session %s", ioctl(device, CIOCCRYPT, &op) < 0 ? strerrorname_np(errno) : "0");
    printf(", end %s", ioctl(device, CIOCFSESSION, &wrong) < 0 ? strerrorname_np(errno) : "0");
    op.ses = ses;
    op.src = (uint8_t *)16;
    printf(", source %s", ioctl(device, CIOCCRYPT, &op) < 0 ? strerrorname_np(errno) : "0");
    op.src = source;
    op.dst = (uint8_t *)16;
    printf(", target %s", ioctl(device, CIOCCRYPT, &op) < 0 ? strerrorname_np(errno) : "0");
    op.dst = target;
    op.iv = (uint8_t *)16;
    printf(", vector %s", ioctl(device, CIOCCRYPT, &op) < 0 ? strerrorname_np(errno) : "0");
    op.iv = iv;
    op.len = 17;
    printf(", length %s", ioctl(device, CIOCCRYPT, &op) < 0 ? strerrorname_np(errno) : "0");
    op.len = 16;
    op.op = 2;
    printf(", operation %s", ioctl(device, CIOCCRYPT, &op) < 0 ? strerrorname_np(errno) : "0");
    op.op = 0;
    printf(", well %s", ioctl(device, CIOCCRYPT, &op) < 0 ? strerrorname_np(errno) : "0");
    printf(", CRIOGET %s", ioctl(device, CRIOGET, &number) < 0 ? strerrorname_np(errno) : "0");
    struct session_op nothing = {0}, badkey = {.cipher = 11, .keylen = 16, .key = (uint8_t *)16};
    printf(", nothing %s", ioctl(device, CIOCGSESSION, &nothing) < 0 ? strerrorname_np(errno) : "0");
    printf(", key %s\n", ioctl(device, CIOCGSESSION, &badkey) < 0 ? strerrorname_np(errno) : "0");
    return 0;
}

/* 32 sessions with a key each are used in turn, and are another descriptor's or nobody's after the last close. */
static int sessions_line(const char *path)
{
    uint32_t ses[32];
    uint8_t outs[32][16];
    int other = open(path, O_RDWR), kept = device;
    device = other;
    for (int i = 0; i < 32; i++) {
        char key[33];
        snprintf(key, sizeof key, "%032x", i);
        ses[i] = begin(23, key, 0, "-");
    }
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 32; i++) {
            struct crypt_op op = {.ses = ses[i], .len = 16, .src = source, .dst = target};
            memset(source, 1, 16);
            if (ioctl(device, CIOCCRYPT, &op) < 0)
                return failed();
            if (round && memcmp(outs[i], target, 16))
                return puts("another answer than before");
            memcpy(outs[i], target, 16);
            for (int j = 0; j < i; j++)
                if (!memcmp(outs[i], outs[j], 16))
                    return puts("two sessions answer the same");
        }
    device = kept;
    struct crypt_op op = {.ses = ses[0], .len = 16, .src = source, .dst = target};
    printf("on another descriptor %s", ioctl(device, CIOCCRYPT, &op) < 0 ? strerrorname_np(errno) : "0");
    close(other);
    other = open(path, O_RDWR);
    printf(", after the close %s\n", ioctl(other, CIOCCRYPT, &op) < 0 ? strerrorname_np(errno) : "0");
    close(other);
    return 0;
}

static int info_line(char **word)
{
    uint32_t ses = begin(atoi(word[1]), word[2], atoi(word[3]), word[4]), features = 77;
    struct session_info_op info = {.ses = ses};
    if (!ses || ioctl(device, CIOCGSESSINFO, &info) < 0 || ioctl(device, CIOCASYMFEAT, &features) < 0)
        return failed();
    return printf("%s/%s/%s/%s %u %u %u\n", info.cipher_info.cra_name, info.cipher_info.cra_driver_name,
                  info.hash_info.cra_name, info.hash_info.cra_driver_name, info.alignmask, info.flags, features);
}

/* copy MAC KEY BEFORE AFTER OTHER: a copy of a half-done digest goes on with OTHER, the first with AFTER. */
static int copy_line(char **word)
{
    uint8_t digest[64] = {0};
    uint32_t one = begin(0, "-", atoi(word[1]), word[2]), two = begin(0, "-", atoi(word[1]), word[2]);
    struct crypt_op op = {.ses = one, .src = source, .mac = digest, .flags = 1 | 64};
    op.len = parse(word[3], source);
    struct cphash_op copy = {.dst_ses = two, .src_ses = one};
    if (ioctl(device, CIOCCRYPT, &op) < 0 || ioctl(device, CIOCCPHASH, &copy) < 0)
        return failed();
    op.flags = 2;
    op.len = parse(word[4], source);
    if (ioctl(device, CIOCCRYPT, &op) < 0)
        return failed();
    print(digest, 32);
    printf(" ");
    op.ses = two;
    op.len = parse(word[5], source);
    if (ioctl(device, CIOCCRYPT, &op) < 0)
        return failed();
    print(digest, 32);
    return puts("");
}

int main(int argc, char **argv)
{
    static char line[1 << 16];
    if (argc != 2 || (device = open(argv[1], O_RDWR)) < 0) {
        perror("open");
        return 1;
    }
    while (fgets(line, sizeof line, stdin)) {
        char *word[64];
        int words = 0;
        for (char *next = strtok(line, " \n"); next && words < 64; next = strtok(NULL, " \n"))
            word[words++] = next;
        if (!words)
            continue;
        if (!strcmp(word[0], "crypt"))
            crypt_line(word);
        else if (!strcmp(word[0], "hash"))
            hash_line(word, words);
        else if (!strcmp(word[0], "auth"))
            auth_line(word, words);
        else if (!strcmp(word[0], "sizes"))
            sizes_line();
        else if (!strcmp(word[0], "errors"))
            errors_line();
        else if (!strcmp(word[0], "sessions"))
            sessions_line(argv[1]);
        else if (!strcmp(word[0], "info"))
            info_line(word);
        else if (!strcmp(word[0], "copy"))
            copy_line(word);
    }
    return 0;
}
