/* A small compute kernel that checks itself.
 *
 * It multiplies matrices in rounds, and every product carries checksums (algorithm-based fault tolerance, Huang and Abraham
 * 1984): the left matrix has one more row, the sums of its columns, the right one one more column, the sums of its rows. The
 * product then has both, and each must still be the sum of what it is beside. All numbers are integers below 2^53 kept in
 * doubles, so the sums are exact and the comparison is by equality; the multiplications run in vector registers, two lanes at a
 * time.
 *
 * One request is one line, over TCP:
 *
 *     run ROUNDS SEED        ->  ROUNDS SEED DIGEST check ok
 *                            or  ROUNDS SEED DIGEST check failed: round R, row I, column J
 *     quit                   ->  bye
 *     anything else          ->  error: WHAT
 *
 * Each answer goes to the console, too. What the check does not cover is the point of it as a target for faults: reducing the
 * product modulo a prime between two rounds, the digest, and the program's own text and stack. A digest that is wrong beside
 * "check ok" is silent corruption; "check failed" is an error that the client was told of.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
  SIZE = 16,             /* rows and columns of the data */
  WIDE = SIZE + 2,       /* with the checksums, and one column of zeros: a whole number of vectors */
  MODULUS = 251,         /* elements are 0 to 250 between two rounds */
  MAX_ROUNDS = 100000,
  LONGEST_LINE = 128,
};

/* A function that is called by this name and no other: campaigns have faults come there. */
#if defined(__clang__)
#define LANDMARK __attribute__((noinline))
#else
#define LANDMARK __attribute__((noipa))
#endif

typedef double lanes __attribute__((vector_size(16)));

typedef union {
  double at[WIDE][WIDE];
  lanes vectors[WIDE][WIDE / 2];
} matrix;

/* Where the checksums do not fit, in the first round of which that is true. */
typedef struct {
  long round;
  int row, column;
} finding;

static matrix left, right, product;

/* xorshift64*: the data of a request depends on its seed alone. */
static uint64_t next_random(uint64_t *state) {
  uint64_t x = *state;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  *state = x;
  return x * UINT64_C(0x2545f4914f6cdd1d);
}

static void fill(matrix *m, uint64_t *state) {
  memset(m, 0, sizeof *m);
  for (int i = 0; i < SIZE; i++)
    for (int j = 0; j < SIZE; j++)
      m->at[i][j] = (double)((next_random(state) >> 32) % MODULUS);
}

/* One more row: the sums of the columns. */
LANDMARK static void add_sum_row(matrix *m) {
  for (int j = 0; j < SIZE; j++) {
    double sum = 0;
    for (int i = 0; i < SIZE; i++)
      sum += m->at[i][j];
    m->at[SIZE][j] = sum;
  }
}

/* One more column: the sums of the rows. */
LANDMARK static void add_sum_column(matrix *m) {
  for (int i = 0; i < SIZE; i++) {
    double sum = 0;
    for (int j = 0; j < SIZE; j++)
      sum += m->at[i][j];
    m->at[i][SIZE] = sum;
  }
}

/* product = left * right, checksums included. The row of vectors that a product's row is summed in stays in registers. */
LANDMARK static void multiply(void) {
  for (int i = 0; i <= SIZE; i++) {
    lanes sums[WIDE / 2];
#pragma GCC unroll 16
    for (int v = 0; v < WIDE / 2; v++)
      sums[v] = (lanes){0, 0};
    for (int k = 0; k < SIZE; k++) {
      lanes factor = {left.at[i][k], left.at[i][k]};
#pragma GCC unroll 16
      for (int v = 0; v < WIDE / 2; v++)
        sums[v] += factor * right.vectors[k][v];
    }
#pragma GCC unroll 16
    for (int v = 0; v < WIDE / 2; v++)
      product.vectors[i][v] = sums[v];
  }
}

/* Whether every row's and every column's checksum still is the sum of what it is beside; -1 in `found` where all fit. */
LANDMARK static int check_product(finding *found) {
  found->row = found->column = -1;
  for (int i = 0; i <= SIZE && found->row < 0; i++) {
    double sum = 0;
    for (int j = 0; j < SIZE; j++)
      sum += product.at[i][j];
    /* Written so that a NaN does not fit either. */
    if (!(sum == product.at[i][SIZE]))
      found->row = i;
  }
  for (int j = 0; j <= SIZE && found->column < 0; j++) {
    double sum = 0;
    for (int i = 0; i < SIZE; i++)
      sum += product.at[i][j];
    if (!(sum == product.at[SIZE][j]))
      found->column = j;
  }
  return found->row < 0 && found->column < 0;
}

/* The next round's left matrix: the product's data modulo a prime, so that numbers stay small and no round forgets the ones
 * before it. */
LANDMARK static void reduce_product(void) {
  memset(&left, 0, sizeof left);
  for (int i = 0; i < SIZE; i++)
    for (int j = 0; j < SIZE; j++)
      left.at[i][j] = (double)((int64_t)product.at[i][j] % MODULUS);
}

/* FNV-1a over the data. */
LANDMARK static uint64_t digest_of(const matrix *m) {
  uint64_t digest = UINT64_C(0xcbf29ce484222325);
  for (int i = 0; i < SIZE; i++)
    for (int j = 0; j < SIZE; j++) {
      digest ^= (uint64_t)(int64_t)m->at[i][j];
      digest *= UINT64_C(0x100000001b3);
    }
  return digest;
}

/* Runs the rounds; whether all checks fitted. It goes on after one that did not: the digest then shows what became of it. */
static int run(long rounds, uint64_t seed, uint64_t *digest, finding *found) {
  uint64_t state = seed * 2 + 1;
  int good = 1;
  fill(&left, &state);
  fill(&right, &state);
  add_sum_column(&right);
  for (long round = 1; round <= rounds; round++) {
    finding now;
    add_sum_row(&left);
    multiply();
    if (!check_product(&now) && good) {
      good = 0;
      *found = now;
      found->round = round;
    }
    reduce_product();
  }
  *digest = digest_of(&left);
  return good;
}

/* Answers one line; 0 when it was the last. */
static int answer(const char *line, char *out, size_t size) {
  long rounds;
  unsigned long long seed;
  char rest;
  if (strcmp(line, "quit") == 0) {
    snprintf(out, size, "bye\n");
    return 0;
  }
  if (sscanf(line, "run %ld %llu%c", &rounds, &seed, &rest) != 2) {
    snprintf(out, size, "error: not a request: run ROUNDS SEED, or quit\n");
  } else if (rounds < 1 || rounds > MAX_ROUNDS) {
    snprintf(out, size, "error: 1 to %d rounds\n", MAX_ROUNDS);
  } else {
    uint64_t digest = 0;
    finding found = {0, -1, -1};
    if (run(rounds, seed, &digest, &found))
      snprintf(out, size, "%ld %llu %016llx check ok\n", rounds, seed, (unsigned long long)digest);
    else
      snprintf(out, size, "%ld %llu %016llx check failed: round %ld, row %d, column %d\n", rounds, seed,
               (unsigned long long)digest, found.round, found.row, found.column);
  }
  return 1;
}

static int send_all(int fd, const char *bytes, size_t left_over) {
  while (left_over > 0) {
    /* A client that has gone must not end the server by a signal. */
    ssize_t written = send(fd, bytes, left_over, MSG_NOSIGNAL);
    if (written < 0 && errno == EINTR)
      continue;
    if (written <= 0)
      return 0;
    bytes += written;
    left_over -= (size_t)written;
  }
  return 1;
}

/* One client, to its end. A line that is too long ends it. */
static void serve(int client) {
  char line[LONGEST_LINE], out[2 * LONGEST_LINE];
  size_t length = 0;
  for (;;) {
    ssize_t got = read(client, line + length, sizeof line - length);
    if (got < 0 && errno == EINTR)
      continue;
    if (got <= 0)
      return;
    length += (size_t)got;
    char *end;
    while ((end = memchr(line, '\n', length)) != NULL) {
      *end = '\0';
      if (end > line && end[-1] == '\r')
        end[-1] = '\0';
      int more = answer(line, out, sizeof out);
      fputs(out, stdout);
      if (!send_all(client, out, strlen(out)) || !more)
        return;
      length -= (size_t)(end + 1 - line);
      memmove(line, end + 1, length);
    }
    if (length == sizeof line) {
      static const char too_long[] = "error: the line is too long\n";
      send_all(client, too_long, sizeof too_long - 1);
      return;
    }
  }
}

/* With two arguments it answers one request on its standard output and ends; with one it is a server at that port. */
int main(int argc, char **argv) {
  if (argc == 3) {
    char line[LONGEST_LINE], out[2 * LONGEST_LINE];
    snprintf(line, sizeof line, "run %s %s", argv[1], argv[2]);
    answer(line, out, sizeof out);
    fputs(out, stdout);
    return strstr(out, "check ok") ? 0 : 1;
  }
  int port = argc == 2 ? atoi(argv[1]) : 0;
  if (port < 1 || port > 65535) {
    fprintf(stderr, "usage: compute PORT | compute ROUNDS SEED\n");
    return 2;
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 64) != 0) {
    perror("compute");
    return 1;
  }
  printf("compute: ready, %d by %d matrices\n", SIZE, SIZE);
  for (;;) {
    int client = accept(listener, NULL, NULL);
    if (client < 0) {
      if (errno == EINTR || errno == ECONNABORTED)
        continue;
      perror("compute: accept");
      return 1;
    }
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    serve(client);
    close(client);
  }
}
